"""Predicted memory: weights as they are stored, caches, and a prefill step with all its heads."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import make_config, write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.models.config import all_linears
from edgekit.models.families import model_config_from_hf
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.plan.memory import Fit, predict_fit
from edgekit.quant.scheme import QuantScheme
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


def predict(target: str, heads: int, max_context: int = 4096) -> Fit:
    config = model_config_from_hf(make_config(heads=heads, kv_heads=2, head_dim=16))
    schemes = {linear.name: QuantScheme(4, 64) for linear in all_linears(config)}
    return predict_fit(
        config, schemes, "float16", TARGETS[target], max_context=max_context, max_sequences=1
    )


def test_attention_scores_count_every_head() -> None:
    """Each query head more adds its scores and their softmax over a prefill chunk."""
    scores_of_a_head = 512 * 4096
    for target, width in (("orin", 2), ("cpu", 4), ("orin-jp62", 4)):
        few, many = (predict(target, heads).activations_bytes for heads in (4, 8))
        assert many - few == 4 * 2 * width * scores_of_a_head, target
    assert predict("orin", 4, max_context=64).activations_bytes < scores_of_a_head


@pytest.mark.parametrize("recipe", ["w4a16-g64", "w8a16", "float16"])
def test_sizes_in_the_manifest_are_counted(recipe: str, tmp_path: Path) -> None:
    """A manifest's sizes are those of its blobs and files; the prediction was right, too."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    request = BuildRequest(
        str(checkpoint), TARGETS["orin"], load_recipe(recipe), tmp_path / "b", threads=1
    )
    result = build(request)
    manifest = open_bundle(tmp_path / "b").manifest
    blobs = sum(path.stat().st_size for path in (tmp_path / "b/blobs").rglob("*") if path.is_file())
    manifests = sum((tmp_path / "b" / f"manifest.{x}").stat().st_size for x in ("json", "sha256"))
    assert manifest.size["weights_bytes"] == blobs
    assert manifest.requirements["disk_bytes"] == result.total_bytes - manifests
    # Norms of equal values may share a blob: the prediction counts each tensor.
    assert result.fit.weights_bytes == sum(entry.size_bytes for entry in manifest.tensors)
    linears = {x.name for x in all_linears(model_config_from_hf(make_config(vocab=4096)))}
    stored = [e for e in manifest.tensors if e.name.rsplit(".", 1)[0] in linears]
    counted = sum(e.size_bytes for e in stored if not e.name.endswith(".bias"))
    assert manifest.size["linear_bytes"] == counted


def test_equal_blobs_count_once(tmp_path: Path) -> None:
    """Two layers of the same weights take the room of one on disk."""
    from factories import random_tensors

    config = make_config(vocab=4096)
    tensors = random_tensors(config)
    for name in tensors:
        if name.startswith("model.layers.1."):
            tensors[name] = tensors[name.replace("layers.1.", "layers.0.")]
    checkpoint = write_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    request = BuildRequest(
        str(checkpoint), TARGETS["cpu"], load_recipe("w8a16"), tmp_path / "b", threads=1
    )
    result = build(request)
    manifest = open_bundle(tmp_path / "b").manifest
    blobs = sum(path.stat().st_size for path in (tmp_path / "b/blobs").rglob("*") if path.is_file())
    assert manifest.size["weights_bytes"] == blobs < result.fit.weights_bytes
