"""``plan`` of hub ids: the configuration is fetched, and nothing else; from a fake hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from factories import make_config, write_checkpoint
from fake_hub import Repositories, environment, serve

SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "plan.schema.json"


def plan(
    tmp_path: Path, repositories: Repositories, model: str, *, offline: bool = False, code: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Run ``edgekit plan --json`` against a hub; returns its document and the hub's requests."""
    with serve(repositories) as (endpoint, requests):
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", "plan", model, "--target", "orin", "--json"],
            env=environment(tmp_path / "hf", endpoint, offline=offline),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == code, done
    document: dict[str, Any] = json.loads(done.stdout)
    if code == 0:
        jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    return document, requests


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_hub_id_is_planned_by_its_configuration(tmp_path: Path) -> None:
    """The plan is the folder's; weights are not asked for, and the cache serves offline."""
    folder = write_checkpoint(tmp_path / "b")
    repositories = {"a/b": files_of(folder)}
    online, requests = plan(tmp_path, repositories, "a/b")
    assert not any(".safetensors" in request or "tokenizer" in request for request in requests)
    assert any("config.json" in request for request in requests)
    assert plan(tmp_path, repositories, "a/b", offline=True) == (online, [])
    assert plan(tmp_path, {}, str(folder))[0] == online


def test_what_the_hub_does_not_have_is_one_error(tmp_path: Path) -> None:
    """Unknown, gated, offline: the hub's errors; a published name asks no hub."""
    for model, message in (("a/none", "the hub has no model"), ("gated/m", "is gated")):
        error = plan(tmp_path, {}, model, code=6)[0]["error"]
        assert message in error["message"]
    error = plan(tmp_path, {}, "a/b", offline=True, code=6)[0]["error"]
    assert "the hub cannot be reached" in error["message"]
    shown, requests = plan(tmp_path, {}, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
    assert (shown["model"]["name"], requests) == ("DeepSeek-R1-Distill-Qwen-7B", [])


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_codes_on_the_hub_are_not_counted_silently(tmp_path: Path, method: str) -> None:
    """What is quantized already is counted by the recipe, and the plan says so."""
    packed = {"quant_method": method, "bits": 4, "group_size": 128, "format": "pack-quantized"}
    config = make_config() | {"quantization_config": packed}
    files = {"config.json": json.dumps(config).encode()}
    warnings = plan(tmp_path, {"a/packed": files}, "a/packed")[0]["plans"][0]["warnings"]
    assert any("packed is quantized already, and its weights are not here" in w for w in warnings)
