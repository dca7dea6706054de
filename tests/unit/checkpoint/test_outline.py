"""``inspect`` of hub ids: a repository is looked at without its weights, from a fake hub."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint, write_safetensors
from fake_hub import COMMIT, Repositories, environment, serve

from edgekit.checkpoint import hub_headers
from edgekit.checkpoint.hub_headers import RemoteFiles
from edgekit.checkpoint.outline import read_outline

# The hub's client reads its endpoint and cache when it is imported.
_PROGRAM = """
import json, sys
from edgekit.checkpoint.outline import read_outline
from edgekit.errors import EdgekitError
for model in sys.argv[1:]:
    try:
        read_outline(model)
    except EdgekitError as error:
        print(json.dumps([error.exit_code, error.message]))
"""
SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "inspect.schema.json"


def inspect(
    tmp_path: Path, repositories: Repositories, *arguments: str, offline: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Run ``edgekit inspect --json`` against a hub; returns its document and the hub's requests."""
    with serve(repositories) as (endpoint, requests):
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", "inspect", *arguments, "--json"],
            env=environment(tmp_path / "hf", endpoint, offline=offline),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    if done.returncode == 0:
        jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    return document, requests


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_hub_id_is_inspected_without_its_weights(tmp_path: Path, shards: int) -> None:
    """The facts are those of the fetched folder; only headers and descriptions are asked for."""
    folder = write_checkpoint(tmp_path / "m", shards=shards)
    shown, requests = inspect(tmp_path, {"a/b": files_of(folder)}, "a/b", "--revision", COMMIT)
    outline = read_outline(str(folder))
    assert (shown["kind"], shown["revision"], shown["shards"]) == ("checkpoint", COMMIT, shards)
    assert shown["weights_bytes"] == outline.weights_bytes > 100_000
    assert shown["tensors_checked"] is outline.tensors_checked is True
    assert outline.revision is None
    fetched = [request for request in requests if "/resolve/" in request]
    weights = [request for request in fetched if request.split()[1].endswith(".safetensors")]
    assert len(weights) == shards
    assert all(f"bytes=0-{hub_headers.FIRST_BYTES - 1}" in request for request in weights)
    assert not any("tokenizer" in request for request in fetched)
    assert max(map(len, files_of(folder).values())) > 2 * hub_headers.FIRST_BYTES


def test_what_is_cached_needs_no_network(tmp_path: Path) -> None:
    """A fetched model is inspected offline; one that was only inspected says what is missing."""
    repositories = {"a/b": files_of(write_checkpoint(tmp_path / "m")), "a/old": {}}
    online, _ = inspect(tmp_path, repositories, "a/b")
    lacking, requests = inspect(tmp_path, repositories, "a/b", offline=True)
    assert "not wholly, in the cache, and the hub cannot be reached" in lacking["error"]["message"]
    assert (lacking["error"]["exit_code"], requests) == (6, [])
    fetch = "import sys; from edgekit.checkpoint.hub import *; resolve_model('a/b')"
    with serve(repositories) as (endpoint, _):
        env = environment(tmp_path / "hf", endpoint)
        subprocess.run([sys.executable, "-c", fetch], env=env, check=True, timeout=60)
    assert inspect(tmp_path, repositories, "a/b", offline=True) == (online, [])
    _, requests = inspect(tmp_path, repositories, "a/b")
    assert not any(".safetensors" in request for request in requests)


def test_weights_that_are_not_looked_into_say_so(tmp_path: Path) -> None:
    """Pickled and packed weights are counted by their files, and reported as not checked."""
    folder = write_checkpoint(tmp_path / "m")
    files = {n: d for n, d in files_of(folder).items() if not n.endswith(".safetensors")}
    bins = {"pytorch_model-00001-of-00002.bin": b"x" * 70, "pytorch_model-00002-of-00002.bin": b"y"}
    config = json.loads(files["config.json"])
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    part = {"model.layers.0.mlp.up_proj.qweight": np.zeros((4, 8), np.int32)}
    write_safetensors(tmp_path / "part", part)
    packed = {
        **files,
        "config.json": json.dumps(config).encode(),
        "model.safetensors": (tmp_path / "part").read_bytes(),
    }
    repositories = {"a/bin": {**files, **bins}, "a/gptq": packed}
    shown, _ = inspect(tmp_path, repositories, "a/bin")
    assert (shown["weights_bytes"], shown["shards"], shown["tensors_checked"]) == (71, 2, False)
    shown, _ = inspect(tmp_path, repositories, "a/gptq")
    assert (shown["weights_bytes"], shown["shards"], shown["tensors_checked"]) == (128, 1, False)


def bad_repositories(tmp_path: Path) -> Repositories:
    files = files_of(write_checkpoint(tmp_path / "m", shards=2))
    whole = files_of(write_checkpoint(tmp_path / "w"))
    weights = whole["model.safetensors"]
    last = "model-00002-of-00002.safetensors"
    tensors = random_tensors(make_config())
    tensors.popitem()
    write_safetensors(tmp_path / "fewer", tensors)
    bits = json.loads(whole["config.json"]) | {"quantization_config": {"quant_method": "quip"}}
    return {
        "a/rangeless": whole,
        "a/lacking": {n: d for n, d in files.items() if n != last},
        "a/none": {"config.json": whole["config.json"]},
        "a/fewer": {**whole, "model.safetensors": (tmp_path / "fewer").read_bytes()},
        "a/long": {**whole, "model.safetensors": struct.pack("<Q", 1 << 40) + weights[8:]},
        "a/short": {**whole, "model.safetensors": b""},
        "a/cut": {**whole, "model.safetensors": weights[:-2]},
        "a/quip": {**whole, "config.json": json.dumps(bits).encode()},
        "a/named": {"config.json": whole["config.json"], "other.safetensors": weights},
    }


def test_what_cannot_be_inspected_is_said_in_one_line(tmp_path: Path) -> None:
    """A hub without ranges, missing or damaged weights, unknown formats: each its own error."""
    expected = {
        "a/rangeless": (6, "the hub does not give bytes 0 to 131072 of a/rangeless's"),
        "a/lacking": (4, "a/lacking has no model-00002-of-00002.safetensors"),
        "a/none": (6, "a/none publishes no weights that edgekit reads"),
        "a/fewer": (4, "a/fewer lacks 1 of "),
        "a/long": (4, "claims a header of 1099511627776 bytes"),
        "a/short": (4, "model.safetensors has 0 bytes"),
        "a/cut": (4, "model.safetensors ends at byte"),
        "a/quip": (5, "is quantized with 'quip'"),
        "a/named": (4, "a/named has no model.safetensors"),
        "a/absent": (6, "the hub has no model a/absent"),
    }
    with serve(bad_repositories(tmp_path)) as (endpoint, _):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *expected],
            env=environment(tmp_path / "hf", endpoint),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    errors = map(json.loads, done.stdout.splitlines())
    for (code, text), (found, message) in zip(expected.values(), errors, strict=True):
        assert (found, text in message, "\n" in message) == (code, True, False), message


def test_a_long_header_takes_a_second_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header longer than the first request's bytes is fetched to its end, and no further."""
    folder = write_checkpoint(tmp_path / "m")
    data = (folder / "model.safetensors").read_bytes()
    asked = []

    def read(_: RemoteFiles, name: str, start: int, stop: int) -> bytes:
        asked.append((name, start, stop))
        return data[start:stop]

    monkeypatch.setattr(hub_headers, "FIRST_BYTES", 100)
    monkeypatch.setattr(RemoteFiles, "_read", read)
    files = RemoteFiles("a/b", COMMIT, {"model.safetensors": len(data)})
    tensors = files.read_header(Path("model.safetensors"))
    end = 8 + struct.unpack("<Q", data[:8])[0]
    assert asked == [("model.safetensors", 0, 100), ("model.safetensors", 100, end)]
    assert "model.embed_tokens.weight" in tensors
