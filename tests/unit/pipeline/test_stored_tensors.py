"""Blobs read back: exactly the weights an engine computes with, in every stored form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.graph.exponents import Exponents
from edgekit.models.config import all_linears
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.quant.packing import dequantize
from edgekit.quant.rtn import quantize_weight
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


@pytest.mark.parametrize("recipe", ["w4a16-g64", "w8a16", "float16"])
@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_the_stored_weights(tmp_path: Path, recipe: str, *, tied: bool) -> None:
    """Any range of rows of any linear equals the quantized weight, however it is stored."""
    path = write_checkpoint(tmp_path / "checkpoint", tied=tied)
    loaded = load_recipe(recipe)
    request = BuildRequest(
        model=str(path), target=TARGETS["cpu"], recipe=loaded, out=tmp_path / "b"
    )
    bundle = open_bundle(build(request).path)
    checkpoint = open_checkpoint(path)
    entries = {entry.name: entry for entry in bundle.manifest.tensors}
    untied = replace(checkpoint.config, tie_word_embeddings=False)
    stored = StoredTensors(bundle.path, entries, untied, Exponents())
    for linear in all_linears(checkpoint.config):
        tensor = stored.open(f"{linear.name}.weight")
        assert tensor.shape == (linear.out_features, linear.in_features)
        original = checkpoint.tensor(linear.weight_key)
        scheme = (loaded.quant.lm_head if linear.name == "lm_head" else loaded.quant.linear).scheme(
            "rtn"
        )
        if scheme is None:
            wanted = read_all(original).astype(np.float16).astype(np.float32)
        else:
            wanted = dequantize(quantize_weight(original, scheme))
        for start, stop in ((0, linear.out_features), (3, 10), (7, 8)):
            np.testing.assert_array_equal(tensor.rows(start, stop), wanted[start:stop])
