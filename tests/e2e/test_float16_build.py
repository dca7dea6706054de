"""From the command line: models that float16 holds only scaled, coarsely, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint
from test_build import edgekit

from edgekit.bundle.reader import open_bundle


def test_huge_activations_stay_finite_in_float16(tmp_path: Path) -> None:
    """A checkpoint whose residual reaches 1e5 runs finitely in the float16 target graph."""
    config = make_config("qwen2", vocab=4096)
    tensors = random_tensors(config)
    for name in tensors:
        if name.endswith(("down_proj.weight", "o_proj.weight")):
            tensors[name] = tensors[name] * 3000
        if name.endswith("up_proj.weight"):
            tensors[name] = tensors[name] * 30
    path = write_checkpoint(tmp_path / "loud", tensors=tensors)
    edgekit("build", path, "--target", "orin", "--recipe", "w8a16", "--out", tmp_path / "b")
    bundle = open_bundle(tmp_path / "b")
    layers: list[dict[str, Any]] = bundle.manifest.quality["layers"]
    assert max(layer["residual_amax"] for layer in layers) > 65504
    assert bundle.manifest.f16_exponents["residual"] > 0
    assert run_float16_graph(bundle.path) is True


@pytest.mark.parametrize(
    ("family", "factors", "fields"),
    [
        ("qwen2", {"q_proj": 1e-3, "k_proj": 1e5, "up_proj": 2000, "gate_proj": 1e-3}, ["key"]),
        (
            "qwen3",
            {"q_proj": 1e5, "k_proj": 1e5, "q_norm": 100, "k_norm": 8},
            ["query", "key", "query_norm"],
        ),
    ],
)
@pytest.mark.parametrize("target", ["orin", "orin-jp62"])
def test_huge_queries_and_keys(
    tmp_path: Path, family: str, factors: dict[str, float], fields: list[str], target: str
) -> None:
    """Queries and keys beyond float16 get exponents that the stored weights and graphs undo."""
    tensors = random_tensors(make_config(family, vocab=4096))
    for name in tensors:
        module, kind = name.split(".")[-2:]
        if kind == "weight":
            tensors[name] = tensors[name] * factors.get(module, 1)
    path = write_checkpoint(tmp_path / "loud", family=family, tensors=tensors)
    edgekit("build", path, "--target", target, "--recipe", "float16", "--out", tmp_path / "b")
    manifest = open_bundle(tmp_path / "b").manifest
    assert all(any(manifest.f16_exponents[name]) for name in fields)
    assert manifest.quality["kl_divergence_nats"] < 1e-3
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    assert all(golden["passed"] for golden in report["golden"].values())


def test_norms_beyond_float16(tmp_path: Path) -> None:
    """Norms whose weights and outputs exceed float16 are stored shrunk, and the graphs undo it."""
    factors = {"input_layernorm": 1e5, "q_proj": 1e-5, "k_proj": 1e-5, "v_proj": 1e-5}
    factors |= {"norm": 1e-5, "lm_head": 1e5}
    tensors = random_tensors(make_config("qwen2", vocab=4096))
    for name in tensors:
        module, kind = name.split(".")[-2:]
        if kind == "weight":
            tensors[name] = tensors[name] * np.float32(factors.get(module, 1))
    path = write_checkpoint(tmp_path / "loud", tensors=tensors)
    edgekit("build", path, "--target", "orin", "--recipe", "w8a16", "--out", tmp_path / "b")
    manifest = open_bundle(tmp_path / "b").manifest
    exponents = manifest.f16_exponents
    assert min(exponents["input_norm"]) > 0 > exponents["final_norm"]
    assert not any(exponents["post_attention_norm"])
    assert manifest.quality["layers"][0]["input_norm_amax"] > 65504
    assert manifest.quality["final_norm_amax"] < 1e-3
    assert manifest.quality["kl_divergence_nats"] < 1e-2
    assert manifest.quality["warnings"] == []
    report = json.loads(edgekit("verify", tmp_path / "b", "--json").stdout)
    assert all(golden["passed"] for golden in report["golden"].values())


def test_coarse_scores_are_warned_of(tmp_path: Path) -> None:
    """A float16 build of a model with scores of thousands says so, in print and in its manifest."""
    tensors = random_tensors(make_config("qwen2", vocab=4096))
    for name in tensors:
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            tensors[name].reshape(-1, 16)[:, -1] = 128.0  # 128 * 128 / sqrt(16) is 4096
    path = write_checkpoint(tmp_path / "wide", tensors=tensors)
    common = ("build", path, "--recipe", "w8a16", "--no-check", "--out", tmp_path / "b")
    printed = " ".join(edgekit(*common, "--target", "orin").stdout.split())
    assert "warning layer" in printed
    (warning,) = open_bundle(tmp_path / "b").manifest.quality["warnings"]
    assert "attends to scores up to 4" in warning
    assert "in steps of 4" in warning
    assert "warning" not in edgekit(*common, "--overwrite", "--target", "cpu").stdout
    assert open_bundle(tmp_path / "b").manifest.quality["warnings"] == []


def test_scores_beyond_float16_are_refused_for_float16_only(tmp_path: Path) -> None:
    """A float16 target refuses what a float32 target takes, and leaves nothing behind."""
    tensors = random_tensors(make_config("qwen2", vocab=4096))
    for name in tensors:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensors[name] = tensors[name] * 300
    path = write_checkpoint(tmp_path / "loud", tensors=tensors)
    common = ("build", path, "--recipe", "w8a16", "--out", tmp_path / "b", "--target")
    error = edgekit(*common, "orin", check=5).stderr
    assert "attention scores of" in error
    assert "--target cpu" in error
    assert not (tmp_path / "b").exists()
    edgekit(*common, "cpu")


def run_float16_graph(path: Path) -> bool:
    """Run the golden sequences through the float16 graph on the CPU."""
    from edgekit.engine.ort import OrtSession
    from edgekit.evaluate.golden import GoldenLimits, check_golden
    from edgekit.evaluate.golden_set import GoldenSet
    from edgekit.models.config import ModelConfig

    bundle = open_bundle(path)
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    session = OrtSession(
        path / bundle.graph("target").path,
        config=config,
        max_context=64,
        activation_dtype="float16",
        threads=1,
    )
    limits = GoldenLimits(mean_abs_difference_nats_max=0.3, top1_agreement_min=0.9)
    report = check_golden(session, GoldenSet.from_dict(bundle.golden()), limits)
    assert report.passed, report.failures
    return True
