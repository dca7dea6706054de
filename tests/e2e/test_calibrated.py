"""Calibrated recipes from the command line: within budget, better than rounding, repeatable."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from factories import EXAMPLE
from test_build import digests, edgekit

from edgekit.bundle.reader import open_bundle

DATA = Path(__file__).parent.parent / "data"
CALIBRATION = DATA / "shakespeare_calibration.txt"


def write_recipe(folder: Path, algorithm: str, mixed: float = 0.0) -> Path:
    """Write a recipe that calibrates on few tokens."""
    path = folder / f"{algorithm}.toml"
    path.write_text(
        f"""schema_version = 1
name = "quick"
[quant]
algorithm = "{algorithm}"
mixed_bits_per_weight = {mixed}
[calibration]
tokens = 4096
window = 64
segment_tokens = [4, 16]
"""
    )
    return path


def build(out: Path, recipe: object, *more: object) -> dict[str, Any]:
    """Build the example and return the report."""
    arguments = ("--recipe", recipe, "--calibration", CALIBRATION, "--out", out, *more)
    result: dict[str, Any] = json.loads(
        edgekit("build", EXAMPLE, "--target", "orin", *arguments, "--json").stdout
    )
    return result


def divergence(bundle: Path) -> float:
    """Return the KL divergence on held-out text, nats."""
    arguments = ["--text", DATA / "shakespeare_dev.txt", "--text-tokens", 2048]
    report = edgekit("eval", bundle, *arguments, "--reference", EXAMPLE, "--json").stdout
    return float(json.loads(report)["kl_divergence_nats"])


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Divergence of the default recipe, which rounds to nearest."""
    out = tmp_path_factory.mktemp("rounded") / "b"
    edgekit("build", EXAMPLE, "--target", "orin", "--out", out)
    return divergence(out)


def test_gptq_beats_rounding_and_answers(rounded: float, tmp_path: Path) -> None:
    """On a thirtieth of the recipe's data GPTQ already takes a tenth off the divergence."""
    report = build(tmp_path / "b", write_recipe(tmp_path, "gptq"))
    assert report["bits_per_linear_weight"] == 4.25
    assert divergence(tmp_path / "b") < 0.9 * rounded
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    assert all(golden["passed"] for golden in report["golden"].values())
    answers = ("--data", DATA / "reasoning_dev.jsonl", "--limit", 40, "--json")
    assert json.loads(edgekit("eval", tmp_path / "b", *answers).stdout)["exact_match"] >= 0.95


def test_awq_folds_scales_into_the_norms(rounded: float, tmp_path: Path) -> None:
    """AWQ changes norm weights, and is better than rounding alone."""
    build(tmp_path / "b", write_recipe(tmp_path, "awq"))
    edgekit("build", EXAMPLE, "--target", "orin", "--out", tmp_path / "plain", "--no-check")
    changed = json.loads(edgekit("diff", tmp_path / "plain", tmp_path / "b", "--json").stdout)
    assert any("layernorm" in row["name"] for row in changed["tensors"])
    assert divergence(tmp_path / "b") < rounded


def test_mixed_keeps_its_budget(tmp_path: Path) -> None:
    """Mixed precision spends up to its budget on group sizes and 8-bit linears, and says so."""
    report = build(tmp_path / "b", write_recipe(tmp_path, "gptq", mixed=4.3))
    assert 4.25 < report["bits_per_linear_weight"] <= 4.3
    manifest = open_bundle(tmp_path / "b").manifest
    assert len(manifest.size["linears"]) > 1
    assert manifest.recipe["calibration_sha256"]
    run = manifest.recipe["calibration_run"]
    assert (run["device"], run["torch"]) == ("cpu", importlib.metadata.version("torch"))
    assert run["threads"] >= 1


def test_same_data_same_bytes(tmp_path: Path) -> None:
    """Two calibrated builds of the same tokens are the same, bit for bit."""
    recipe = write_recipe(tmp_path, "gptq")
    build(tmp_path / "a", recipe, "--no-check", "--threads", 2)
    build(tmp_path / "b", recipe, "--no-check", "--threads", 2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
