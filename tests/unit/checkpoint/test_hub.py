"""From MODEL to a folder: local ones as they are, hub ids through a fake hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import EXAMPLE, write_checkpoint
from fake_hub import COMMIT, environment, serve

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.hub import hub_commit, resolve_model
from edgekit.errors import CheckpointError

# The hub's client reads its endpoint and cache when it is imported, so each case of the network
# runs in a process of its own.
_PROGRAM = """
import json, sys
from edgekit.checkpoint.hub import hub_commit, resolve_model
from edgekit.errors import EdgekitError
class Count:
    fetched, items = 0, set()
    def advance(self, done_bytes, item=""):
        self.fetched += done_bytes
        self.items.add(item)
for case in json.loads(sys.argv[1]):
    count = Count()
    try:
        folder = resolve_model(case[0], revision=case[1], progress=count)
        print(json.dumps({"path": str(folder), "commit": hub_commit(folder),
                          "fetched": count.fetched, "items": sorted(count.items)}))
    except EdgekitError as error:
        print(json.dumps({"kind": type(error).__name__, "error": str(error)}))
"""


def resolve(
    home: Path, endpoint: str, cases: list[tuple[str, str | None]], *, offline: bool = False
) -> list[dict[str, Any]]:
    """Resolve MODELs in a fresh process against an endpoint; returns a result each."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(cases)],
        env=environment(home, endpoint, offline=offline),
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def repository(tmp_path: Path) -> dict[str, bytes]:
    folder = write_checkpoint(tmp_path / "source", shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        **files,
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"pickle",
        "onnx/config.json": b"{}",
    }


def test_a_hub_model_is_fetched_once_and_then_found_offline(tmp_path: Path) -> None:
    """A hub id becomes an openable folder of data files only; offline, the cache serves it."""
    with serve({"deepseek-ai/tiny": repository(tmp_path)}) as (endpoint, requests):
        (result,) = resolve(tmp_path / "hf", endpoint, [("deepseek-ai/tiny", None)])
        folder = Path(result["path"])
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        assert "model-00002-of-00002.safetensors" in names
        assert not {"modeling_evil.py", "pytorch_model.bin", "onnx/config.json"} & names
        assert result["commit"] == COMMIT
        assert result["fetched"] == sum(path.stat().st_size for path in folder.iterdir())
        assert any("fetching deepseek-ai/tiny of " in item for item in result["items"])
        # The cache's files are links to ../../blobs, which is the one place links may lead to.
        assert open_checkpoint(folder).config.vocab_size == 4096
        requests.clear()
        (again,) = resolve(tmp_path / "hf", endpoint, [("deepseek-ai/tiny", None)], offline=True)
        assert (again["path"], again["commit"]) == (result["path"], COMMIT)
        assert not requests


def test_what_the_hub_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    """Not found, gated, no such revision, no weights, server down: each its own error."""
    repositories = {"a/flax": {"config.json": b"{}", "flax_model.msgpack": b"x"}, "a/b": {}}
    cases: list[tuple[str, str | None]] = [
        ("a/none", None), ("a/gated", None), ("a/b", "v9"), ("a/flax", None), ("a/broken", None),
    ]  # fmt: skip
    with serve(repositories) as (endpoint, _):
        results = resolve(tmp_path / "hf", endpoint, cases)
    expected = [
        "the hub has no model a/none, or it is private",
        "a/gated is gated. Accept its terms",
        "a/b has no revision v9. Check --revision",
        "a/flax publishes no weights that edgekit reads",
        "the hub cannot be reached",
    ]
    for result, text in zip(results, expected, strict=True):
        assert result["kind"] == "HubError"
        assert text in result["error"]
        assert "\n" not in result["error"]


def test_pickled_weights_are_fetched_only_without_safetensors(tmp_path: Path) -> None:
    """A repository of .bin shards only is fetched with them, and found again offline."""
    files = repository(tmp_path)
    pickled = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    pickled["training_args.bin"] = b"pickle"
    with serve({"deepseek-ai/old": pickled}) as (endpoint, _):
        (result,) = resolve(tmp_path / "hf", endpoint, [("deepseek-ai/old", None)])
        names = {path.name for path in Path(result["path"]).iterdir()}
        assert "pytorch_model.bin" in names
        assert not {"training_args.bin", "modeling_evil.py"} & names
        (again,) = resolve(tmp_path / "hf", endpoint, [("deepseek-ai/old", None)], offline=True)
        assert again["path"] == result["path"]


def test_commit_is_the_cache_s_only(tmp_path: Path) -> None:
    """A folder outside a cache has no commit, whatever its name."""
    (tmp_path / COMMIT).mkdir()
    assert hub_commit(tmp_path / COMMIT) is None
    assert hub_commit(EXAMPLE) is None


def test_a_path_too_long_is_no_traceback() -> None:
    """What the system takes for no path at all is an error of one short line."""
    with pytest.raises(CheckpointError, match="cannot read") as caught:
        resolve_model("x" * 5000)
    assert len(caught.value.message) < 300


def test_offline_and_not_cached_names_both_ways_out(tmp_path: Path) -> None:
    """Offline without a cached copy says so, and what to do."""
    (result,) = resolve(tmp_path / "hf", "http://127.0.0.1:9", [("a/b", COMMIT)], offline=True)
    assert f"a/b at revision {COMMIT} is not, or not wholly, in the cache" in result["error"]
    assert "unset HF_HUB_OFFLINE" in result["error"]


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "tiny", "a/b/c", "../a/b", ""])
def test_neither_folder_nor_hub_id(model: str) -> None:
    """What is no folder and has no form of a hub id never reaches the network."""
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        resolve_model(model or "?")


def test_a_folder_is_taken_as_it_is_and_a_file_is_refused(tmp_path: Path) -> None:
    """A local folder needs no network; a file inside one is told apart."""
    assert resolve_model(str(tmp_path)) == tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file. Point MODEL at"):
        resolve_model(str(tmp_path / "model.safetensors"))
