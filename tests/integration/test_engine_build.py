"""`edgekit engine build` with a real builder: TensorRT-RTX, which needs no GPU (trt-check)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import pytest
from trt_cases import changed, small_bundle

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.cli.main import main
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.errors import EngineError, GraphError, MissingExtraError
from edgekit.trt import device_build
from edgekit.trt.client import WORKER
from edgekit.trt.device_build import Machine, engine_key, engine_plan, find_machine, obtain_engine
from edgekit.trt.engine import build_engine
from edgekit.trt.engine_cache import EngineCache
from edgekit.trt.module import BuilderInfo, find_builder

SCHEMA = Path(__file__).parents[2] / "docs/schemas/engine.schema.json"
ORIN = BuilderInfo("tensorrt", "TensorRT", "10.16.2.10", "8.7")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for JetPack 7.2; tests leave it as it is."""
    return small_bundle(tmp_path_factory.mktemp("engine"))


def build(capsys: pytest.CaptureFixture[str], bundle: Bundle, cache: Path) -> dict[str, Any]:
    """Run the command; returns its document, valid by the schema."""
    with pytest.raises(SystemExit) as caught:
        main(["engine", "build", str(bundle.path), "--cache", str(cache), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    if caught.value.code == 0:
        jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    return document


def test_engine_is_built_then_found_then_built_again(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every profile is in it; the second call finds it; damage is said and mended."""
    first = build(capsys, bundle, tmp_path)
    assert first["built"]
    plan = engine_plan(bundle.manifest)
    assert first["profiles"] == [profile.name for profile in plan.profiles]
    assert (first["attention"], first["cache_updates"]) == ("fused", 8)
    engine = Path(first["engine"])
    assert engine.stat().st_size == first["size_bytes"] > 10_000
    again = build(capsys, bundle, tmp_path)
    assert again == {**first, "built": False}
    os.truncate(engine, 1000)
    mended = build(capsys, bundle, tmp_path)
    assert "has 1000 bytes of" in mended["damage"]
    assert mended["built"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".engine", ".json", ".lock"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), 9)", "memory ran out. Nothing was changed. Free memory"),
        ("sys.stderr.write('std::bad_alloc\\n'); sys.exit(3)", "std::bad_alloc. Nothing was"),
    ],
)
def test_builder_that_dies_changes_nothing(
    body: str, message: str, bundle: Bundle, tmp_path: Path
) -> None:
    """Killed or out of memory: an error, and neither an engine nor a part of one."""
    script = (
        "import json, os, sys; r = json.load(sys.stdin); "
        "open(r['engine'], 'wb').write(b'half'); "
        f'print(\'{{"phase": "Building"}}\', flush=True); {body}'
    )
    with pytest.raises(EngineError, match=message):
        obtain_engine(
            bundle,
            EngineCache(tmp_path),
            find_machine(),
            command=(sys.executable, "-c", script),
        )
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_a_builder_without_memory_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    """A real builder that gets no more memory leaves nothing either."""
    limited = ("bash", "-c", 'ulimit -v 700000; exec "$@"', "bash", *WORKER)
    with pytest.raises(EngineError):
        obtain_engine(bundle, EngineCache(tmp_path), find_machine(), command=limited)
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}


def test_the_builder_goes_first_when_memory_runs_out(bundle: Bundle) -> None:
    """The worker asks to be killed before any engine that answers."""
    script = (
        "from edgekit import worker_process; from edgekit.trt import worker; "
        "oom = worker_process._OOM_SCORE; "
        "worker.serve = lambda request, phase: {'oom': oom.read_text().strip()}; "
        "worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input="{}", capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"result": {"oom": "1000"}}
    assert bundle.manifest.engine_plans


def test_a_full_disk_is_an_error_of_the_sink(bundle: Bundle) -> None:
    """What the sink raises does not pass through the builder, and is not lost."""

    def full(data: memoryview) -> None:
        del data
        raise OSError(errno.ENOSPC, "No space left on device")

    path = bundle.path / bundle.graph("target").path
    model = onnx.load(path, load_external_data=False)
    plan = EnginePlan.from_dict(bundle.manifest.engine_plans[0])
    with pytest.raises(OSError, match="No space left"):
        build_engine(model, path, plan, find_builder(), sink=full)


def test_an_orin_of_another_release_is_refused(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """L4T or TensorRT out of range: exit code 11, one line, nothing in the cache."""
    for machine, said in (
        (Machine(ORIN, "36.4.3"), "needs L4T >=39.2,<40, this machine has 36.4.3"),
        (Machine(BuilderInfo("tensorrt", "TensorRT", "10.3.0", "8.7"), "39.2.0"), "TensorRT"),
    ):
        monkeypatch.setattr(device_build, "find_machine", lambda machine=machine: machine)
        error = build(capsys, bundle, tmp_path / "engines")["error"]
        assert error["exit_code"] == 11
        assert said in error["message"]
    assert not (tmp_path / "engines").exists()


def test_a_machine_without_tensorrt_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise MissingExtraError("the TensorRT compile check", "trt-check")

    monkeypatch.setattr(device_build, "find_builder", none)
    with pytest.raises(EngineError, match=r"no TensorRT with a GPU.*apt install"):
        find_machine()


@pytest.mark.parametrize(
    ("sm", "built_for", "runs"), [("8.9", "8.9", True), ("9.0", "8.6", False), (None, "8.6", False)]
)
def test_tensorrt_rtx_runs_on_the_gpus_it_knows(
    sm: str | None, built_for: str, monkeypatch: pytest.MonkeyPatch, *, runs: bool
) -> None:
    """It builds for the GPU that is there, where it knows it; else what it builds is a trial."""
    monkeypatch.setattr(device_build, "gpu_sm", lambda: sm)
    machine = find_machine()
    assert (machine.builder.sm, machine.runs_engines) == (built_for, runs)


def test_onnx_is_needed_only_to_build(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without onnx finds its engine, and is told the extra where it must build."""
    cache, machine = EngineCache(tmp_path), find_machine()
    monkeypatch.setattr("importlib.util.find_spec", {"onnx": None}.get)
    with pytest.raises(MissingExtraError, match=r"edgekit\[tensorrt\]"):
        obtain_engine(bundle, cache, machine)
    monkeypatch.undo()
    key = engine_key(bundle.manifest, engine_plan(bundle.manifest), machine)

    def make(path: Path) -> dict[str, Any]:
        path.write_bytes(b"engine")
        return {}

    cache.obtain(key, make).release()
    monkeypatch.setattr("importlib.util.find_spec", {"onnx": None}.get)
    assert not obtain_engine(bundle, cache, machine).built


def test_a_damaged_bundle_builds_nothing(tmp_path: Path) -> None:
    """Digests are checked before the build; without that, the parser's refusal is the error."""

    def fancy(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == "Sigmoid")
        node.op_type, node.domain = "FancyGate", "com.example"

    bundle = changed(small_bundle(tmp_path), fancy)
    with pytest.raises(GraphError, match="FancyGate"):
        obtain_engine(bundle, EngineCache(tmp_path / "e"), find_machine(), digests=False)
    assert not list((tmp_path / "e").glob("*.engine"))


def test_the_key_knows_its_parts(bundle: Bundle) -> None:
    """Weights, graph, builder and release are in the key."""
    plan = engine_plan(bundle.manifest)
    here = engine_key(bundle.manifest, plan, Machine(ORIN, "39.2.0"))
    assert (here.version, here.sm, here.l4t) == ("10.16.2.10", "8.7", "39.2.0")
    graph = bundle.path / bundle.graph("target").path
    assert here.graph_sha256 == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert open_bundle(bundle.path).digest == bundle.digest
