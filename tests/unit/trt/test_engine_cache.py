"""The cache of engines: built once, checked before use, evicted when no one needs it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EngineError, StorageError
from edgekit.trt.engine_cache import EngineCache, EngineKey, default_folder

KEY = EngineKey("a" * 64, "b" * 64, {"graph": "g"}, "tensorrt", "10.16.2.10", "8.7", "39.2.0")
Make = Callable[[Path], Mapping[str, Any]]


def maker(data: bytes = b"engine", made: list[bytes] | None = None) -> Make:
    """Return a builder that writes ``data``, and notes it in ``made``."""

    def make(path: Path) -> Mapping[str, Any]:
        path.write_bytes(data)
        if made is not None:
            made.append(data)
        return {"attention": "fused"}

    return make


def refuse(path: Path) -> Mapping[str, Any]:
    raise AssertionError(path)


def names(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def test_the_same_key_is_built_once(tmp_path: Path) -> None:
    """A second request finds the engine, its bytes and its facts, and builds nothing."""
    cache = EngineCache(tmp_path / "engines")
    first = cache.obtain(KEY, maker())
    again = EngineCache(tmp_path / "engines").obtain(KEY, refuse)
    assert (first.built, again.built) == (True, False)
    assert again.path.read_bytes() == b"engine"
    assert again.facts == {"attention": "fused"}
    assert (again.size_bytes, again.damage) == (6, "")
    assert names(cache.folder) == {".engine", ".json", ".lock"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("graph_sha256", "c" * 64),
        ("weights_sha256", "c" * 64),
        ("plan", {"graph": "g", "cache_capacity": 8}),
        ("module", "tensorrt_rtx"),
        ("version", "10.16.2.11"),
        ("sm", "8.6"),
        ("l4t", "39.2.1"),
    ],
)
def test_every_part_of_the_key_counts(field: str, value: Any, tmp_path: Path) -> None:
    """An engine of another graph, plan, builder, GPU or release is another engine."""
    cache, other = EngineCache(tmp_path), replace(KEY, **{field: value})
    first = cache.obtain(KEY, maker())
    second = cache.obtain(other, maker(b"other"))
    assert second.built
    assert second.path != first.path


def cut(path: Path) -> None:
    os.truncate(path, 3)


def flip(path: Path) -> None:
    path.write_bytes(b"Engine")


def garble(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sha256": 5}')


def cut_sidecar(path: Path) -> None:
    os.truncate(path.with_suffix(".json"), 20)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (cut, "has 3 bytes of 6"),
        (flip, "its digest is not its sidecar's"),
        (Path.unlink, "is gone"),
        (garble, "sidecar of engine .* is damaged"),
        (cut_sidecar, "sidecar of engine .* is damaged"),
    ],
)
def test_damage_is_reported_and_built_again(
    harm: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    """Whatever is damaged, the engine is built again and the caller told why."""
    cache = EngineCache(tmp_path)
    first = cache.obtain(KEY, maker())
    first.release()
    harm(first.path)
    again = cache.obtain(KEY, maker(b"anew"))
    assert again.built
    assert re.search(said, again.damage)
    assert again.path.read_bytes() == b"anew"
    assert cache.obtain(KEY, refuse).damage == ""


def test_engine_without_a_sidecar_is_no_engine(tmp_path: Path) -> None:
    """Power lost between the two renames leaves an engine that is built again."""
    cache = EngineCache(tmp_path)
    cache.obtain(KEY, maker()).path.with_suffix(".json").unlink()
    again = cache.obtain(KEY, maker(b"anew"))
    assert (again.built, again.damage) == (True, "")


def test_a_failed_build_leaves_nothing_and_evicts_nothing(tmp_path: Path) -> None:
    """Out of memory in a build: the engine before it is still there, nothing half-written is."""
    cache = EngineCache(tmp_path, limit_bytes=6)
    old = cache.obtain(KEY, maker())
    old.release()

    def fail(path: Path) -> Mapping[str, Any]:
        path.write_bytes(b"half")
        raise EngineError("out of memory")

    new = replace(KEY, graph_sha256="c" * 64)
    with pytest.raises(EngineError, match="out of memory"):
        cache.obtain(new, fail)
    assert not list(tmp_path.glob("*.building"))
    assert [path.stem for path in tmp_path.glob("*.engine")] == [KEY.digest()]
    assert not cache.obtain(KEY, refuse).built

    def empty(path: Path) -> Mapping[str, Any]:
        path.touch()
        return {}

    with pytest.raises(EngineError, match="empty engine"):
        cache.obtain(new, empty)


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    """A half-written file of a builder that was killed is not taken for an engine."""
    left = tmp_path / f"{KEY.digest()}.building"
    left.write_bytes(b"half of an engine")
    assert EngineCache(tmp_path).obtain(KEY, maker()).path.read_bytes() == b"engine"
    assert not left.exists()


def test_two_threads_build_one_engine(tmp_path: Path) -> None:
    """Whoever comes second waits, and finds what the first has built."""
    made: list[bytes] = []
    begun, go = threading.Event(), threading.Event()

    def slow(path: Path) -> Mapping[str, Any]:
        begun.set()
        assert go.wait(10)
        return maker(made=made)(path)

    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(EngineCache(tmp_path).obtain(KEY, slow).built))
        for _ in range(2)
    ]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert (sorted(found), len(made)) == ([False, True], 1)


def test_another_process_is_waited_for(tmp_path: Path) -> None:
    """The lock holds between processes, and dies with its holder."""
    lock = tmp_path / f"{KEY.digest()}.lock"
    script = (
        "import fcntl, os, sys\n"
        "h = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(h, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        done = threading.Thread(target=EngineCache(tmp_path).obtain, args=(KEY, maker()))
        done.start()
        done.join(0.1)
        assert done.is_alive()
        other.kill()
        done.join(10)
        assert not done.is_alive()


def test_least_recently_used_goes_first_and_never_one_in_use(tmp_path: Path) -> None:
    """Above the limit the engine unused for longest goes; what is held or was just built stays."""
    cache = EngineCache(tmp_path, limit_bytes=12)
    keys = [replace(KEY, sm=f"8.{index}") for index in range(4)]
    held = cache.obtain(keys[0], maker())
    for index in (1, 2):
        engine = cache.obtain(keys[index], maker())
        os.utime(engine.path, (index, index))
        engine.release()
    os.utime(held.path, (0, 0))
    assert [key.sm for key in keys if (tmp_path / f"{key.digest()}.engine").exists()] == [
        "8.0", "8.2",
    ]  # fmt: skip
    last = cache.obtain(keys[3], maker())
    assert last.evicted == (keys[2].digest(),)
    assert {path.stem for path in tmp_path.glob("*.json")} == {
        keys[0].digest(), keys[3].digest(),
    }  # fmt: skip
    held.release()
    held.release()
    assert cache.obtain(keys[1], maker()).evicted == (keys[0].digest(),)


def test_one_larger_than_the_limit_is_kept(tmp_path: Path) -> None:
    """The engine asked for is given, whatever the limit."""
    engine = EngineCache(tmp_path, limit_bytes=1).obtain(KEY, maker())
    assert engine.path.exists()
    assert engine.evicted == ()


def test_one_being_built_is_not_evicted(tmp_path: Path) -> None:
    """A key whose lock another holds is left alone."""
    cache = EngineCache(tmp_path, limit_bytes=6)
    old = cache.obtain(KEY, maker())
    old.release()
    with (tmp_path / f"{KEY.digest()}.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cache.obtain(replace(KEY, sm="9.0"), maker()).evicted == ()


def test_unwritable_cache_is_named(tmp_path: Path) -> None:
    """A cache that is a file is a StorageError with its path."""
    (tmp_path / "engines").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*engines"):
        EngineCache(tmp_path / "engines").obtain(KEY, refuse)


def test_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable decides, then the XDG cache."""
    monkeypatch.delenv("EDGEKIT_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_folder() == Path("/cache/edgekit/engines")
    monkeypatch.setenv("EDGEKIT_ENGINES", "/data/engines")
    assert default_folder() == Path("/data/engines")


def test_timings_are_of_one_builder_and_gpu(tmp_path: Path) -> None:
    """Keys of one TensorRT and SM share the file of timings, others have their own."""
    cache = EngineCache(tmp_path)
    assert cache.timings(KEY) == cache.timings(replace(KEY, graph_sha256="c" * 64))
    assert cache.timings(KEY) != cache.timings(replace(KEY, version="10.3.0"))
    assert cache.timings(KEY) != cache.timings(replace(KEY, sm="8.6"))


def test_a_relative_stands_in(tmp_path: Path) -> None:
    """Another plan or release of the same graph, weights and builder, the one used last; whole."""
    cache = EngineCache(tmp_path)
    keys = [
        replace(KEY, plan={"graph": "g", "cache_capacity": 8}),
        replace(KEY, l4t="39.2.1"),
        replace(KEY, version="10.16.3"),
        replace(KEY, sm="8.9"),
        replace(KEY, weights_sha256="c" * 64),
    ]
    for index, key in enumerate(keys):
        engine = cache.obtain(key, maker(b"%d" % index))
        os.utime(engine.path, (index, index))
        engine.release()
    assert cache.relatives(KEY) == keys[3::-1]
    found = cache.stand_in(KEY)
    assert found is not None
    assert (found.path.read_bytes(), found.key["l4t"], found.built) == (b"1", "39.2.1", False)
    found.release()
    os.truncate(found.path, 0)
    found = cache.stand_in(KEY)
    assert found is not None
    assert found.key["plan"] == keys[0].plan
    found.release()
    found.path.with_suffix(".json").write_text("{}")
    assert cache.stand_in(KEY) is None
    assert EngineCache(tmp_path / "none").relatives(KEY) == []
