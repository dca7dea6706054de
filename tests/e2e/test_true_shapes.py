"""Each published model's true shape, two layers deep, is built by its own recipe."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from factories import EXAMPLE, to_bf16

from edgekit.models.config import tensor_shapes
from edgekit.models.families import model_config_from_hf
from edgekit.models.published import PUBLISHED
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import default_recipe, load_recipe
from edgekit.targets import TARGETS

CONFIGS = Path(__file__).parents[1] / "data/configs"
BLOCK = 1 << 20
LAYERS = 2


def distinct_models() -> list[str]:
    """Return a published model for each configuration there is."""
    found: dict[str, str] = {}
    for model in PUBLISHED:
        file = CONFIGS / f"{model.hub_id.split('/')[1]}.json"
        if file.is_file():
            found.setdefault(repr(model_config_from_hf(json.loads(file.read_text()))), file.stem)
    return list(found.values())


def write_two_layers(path: Path, name: str) -> Path:
    """Write a checkpoint of a model's true widths, one block of random values after another."""
    data = json.loads((CONFIGS / f"{name}.json").read_text())
    data["num_hidden_layers"] = LAYERS
    path.mkdir()
    (path / "config.json").write_text(json.dumps(data))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / file, path / file)
    rng = np.random.default_rng(0)
    header, offset = {}, 0
    shapes = tensor_shapes(model_config_from_hf(data))
    for tensor, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[tensor] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = rng.standard_normal(BLOCK).astype(np.float32)
    with (path / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor, shape in shapes.items():
            norm = tensor.endswith("norm.weight")
            values = to_bf16(1 + 0.1 * block if norm else 0.02 * np.roll(block, len(tensor)))
            left = int(np.prod(shape))
            while left:
                count = min(left, BLOCK)
                out.write(values[:count].tobytes())
                left -= count
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", distinct_models())
def test_true_shape_builds(name: str, tmp_path: Path) -> None:
    """Weights take what the plan says, and the recipe's limits are kept."""
    checkpoint = write_two_layers(tmp_path / name, name)
    recipe = load_recipe(default_recipe(name, "orin"))
    assert recipe.model.endswith(name)
    request = BuildRequest(str(checkpoint), TARGETS["orin"], recipe, tmp_path / "bundle", threads=2)
    result = build(request)
    stored = sum(p.stat().st_size for p in (tmp_path / "bundle/blobs").rglob("*") if p.is_file())
    assert stored <= result.fit.weights_bytes < recipe.expected.weights_bytes
    assert result.quality["checked"]
