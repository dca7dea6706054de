"""The LM head's type decides its tensors, its node, its bytes and its row of the quality report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from factories import write_checkpoint

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.verify import verify_bundle
from edgekit.recipe import parse_recipe
from edgekit.targets import TARGETS

VOCAB, HIDDEN, LINEARS = 4096, 64, 15
HEADS: dict[str, dict[str, Any]] = {
    "int4": {"label": "w4-g64", "bytes": HIDDEN * VOCAB // 2 + 2 * VOCAB, "codes": "int4"},
    "int8": {"label": "w8-g64", "bytes": HIDDEN * VOCAB + 2 * VOCAB, "codes": "int8"},
    "float16": {"label": "dense", "bytes": 2 * HIDDEN * VOCAB, "codes": None},
}


def make(root: Path, head: str, *, tied: bool) -> tuple[Bundle, dict[str, Any]]:
    checkpoint = write_checkpoint(root / "checkpoint", tied=tied)
    text = f'schema_version = 1\nname = "h"\n[quant.lm_head]\ndtype = "{head}"\n'
    request = BuildRequest(
        str(checkpoint), TARGETS["orin"], parse_recipe(text, "h.toml"), root / "b", threads=1
    )
    result = build(request)
    return open_bundle(result.path), result.to_dict()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_head_is_stored_as_the_recipe_says(head: str, tied: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Manifest, graphs, sizes and quality rows agree on the head, tied or not; it verifies."""
    bundle, result = make(tmp_path, head, tied=tied)
    wanted, manifest = HEADS[head], bundle.manifest
    stored = {e.name: e for e in manifest.tensors if e.name.startswith("lm_head.")}
    codes = stored.get("lm_head.codes")
    assert (codes.dtype if codes else None) == wanted["codes"]
    assert set(stored) == ({"lm_head.codes", "lm_head.scales"} if codes else {"lm_head.weight"})
    assert sum(entry.size_bytes for entry in stored.values()) == wanted["bytes"]
    layers = {"w4-g64": LINEARS - 1}
    labels = {**layers, wanted["label"]: layers.get(wanted["label"], 0) + 1}
    assert manifest.size["linears"] == labels
    scored = {row["name"]: row["scheme"] for row in manifest.quality["tensors"]}
    assert scored.get("lm_head") == (wanted["label"] if codes else None)
    assert len(scored) == LINEARS - (codes is None)
    report = verify_bundle(bundle, threads=1)
    for entry in manifest.graphs:
        graph = onnx.load(bundle.path / entry.path, load_external_data=False).graph
        # What an ort graph makes at load is named after what it is made from.
        held = {tensor.name.replace(".nbits_", ".") for tensor in graph.initializer}
        assert {name for name in held if name.startswith("lm_head.")} == set(stored)
        assert report["graphs"][entry.name]["linears"] == labels
        assert report["golden"][entry.name]["passed"]
    assert result["fit"]["linear_bytes"] == manifest.size["linear_bytes"]


def test_head_types_differ_in_the_head_alone(tmp_path: Path) -> None:
    """Builds that differ in the head share every other blob; more bits are bigger and truer."""
    bundles = {head: make(tmp_path / head, head, tied=False)[0] for head in HEADS}
    others = [
        {e.name: e.sha256 for e in b.manifest.tensors if not e.name.startswith("lm_head.")}
        for b in bundles.values()
    ]
    assert others[0] == others[1] == others[2]
    sizes = [b.manifest.size["linear_bytes"] for b in bundles.values()]
    assert [size - sizes[0] for size in sizes] == [
        wanted["bytes"] - HEADS["int4"]["bytes"] for wanted in HEADS.values()
    ]
    kl = [b.manifest.quality["kl_divergence_nats"] for b in bundles.values()]
    assert kl[0] > kl[1] >= kl[2]
