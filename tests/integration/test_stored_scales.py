"""Scales that lose bits under float16's powers of two: codes are chosen for what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.graph.exponents import Exponents
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.recipe import parse_recipe
from edgekit.targets import TARGETS

DATA = Path(__file__).parent.parent / "data"
SIZES: dict[str, Any] = {"hidden": 128, "intermediate": 256, "vocab": 4096}
TINY = float(np.finfo(np.float16).tiny)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a loud residual stream, to which its layers add little."""
    tensors = random_tensors(make_config("qwen2", **SIZES))
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] *= np.float32(0.02)
    tensors["model.embed_tokens.weight"] *= np.float32(2e7)
    path = tmp_path_factory.mktemp("loud") / "checkpoint"
    return write_checkpoint(path, tensors=tensors, dtype="f32", **SIZES)


def recipe(algorithm: str) -> str:
    """Return a recipe of groups of 32, calibrated on few tokens."""
    calibration = "" if algorithm == "rtn" else "[calibration]\ntokens = 1024\nwindow = 64\n"
    return f"""schema_version = 1
name = "quick"
[quant]
algorithm = "{algorithm}"
linear = {{ group_size = 32 }}
{calibration}"""


@pytest.mark.parametrize("algorithm", ["rtn", "gptq"])
def test_the_reported_error_is_that_of_the_stored_weight(
    checkpoint: Path, tmp_path: Path, algorithm: str
) -> None:
    """Codes chosen with the scales as stored: what the report says is what the blobs hold."""
    if algorithm != "rtn":
        pytest.importorskip("torch")
    request = BuildRequest(
        str(checkpoint),
        TARGETS["orin"],
        parse_recipe(recipe(algorithm), "quick.toml"),
        tmp_path / "bundle",
        calibration=None if algorithm == "rtn" else DATA / "shakespeare_calibration.txt",
    )
    bundle = open_bundle(build(request).path)
    exponents = Exponents.from_dict(bundle.manifest.f16_exponents)
    assert exponents.residual >= 8
    source = open_checkpoint(checkpoint)
    entries = {entry.name: entry for entry in bundle.manifest.tensors}
    untied = replace(source.config, tie_word_embeddings=False)
    stored = StoredTensors(bundle.path, entries, untied, exponents)
    reported = {row["name"]: row for row in bundle.manifest.quality["tensors"]}
    for layer in range(2):
        for short in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{short}"
            scales = bundle.read_tensor(bundle.tensor(f"{name}.scales"))
            assert (scales < TINY).mean() > 0.5
            weight = read_all(source.tensor(f"{name}.weight"))
            effective = read_all(stored.open(f"{name}.weight"))
            error = float(np.linalg.norm(effective - weight) / np.linalg.norm(weight))
            assert reported[name]["relative_rmse"] == pytest.approx(error, rel=1e-3)
            if algorithm == "rtn":
                step = np.repeat(np.ldexp(scales.T.astype(np.float32), exponents.residual), 32, 1)
                nearest = np.clip(np.rint(weight / step), -8, 7) * step
                np.testing.assert_array_equal(effective, nearest)
