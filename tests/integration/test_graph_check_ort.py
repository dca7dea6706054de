"""The check of a graph of the ort dialect, and of the list of weights that are made at load."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from factories import make_config, write_checkpoint
from onnx import TensorProto, helper

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.contracts.derived import derived_path
from edgekit.engine.derived import make_derived
from edgekit.errors import BundleError, EdgekitError, GraphError
from edgekit.graph.check_ort import check_ort_graph
from edgekit.models.config import ModelConfig, all_linears
from edgekit.models.families import model_config_from_hf
from edgekit.pipeline.build import build
from edgekit.pipeline.graphs import wanted_graphs
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.verify import stored_schemes
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

MLP = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("check")
    checkpoint = write_checkpoint(root / "checkpoint")
    recipe = load_recipe("w4a16-g64")
    wanted = BuildRequest(str(checkpoint), TARGETS["orin"], recipe, root / "bundle", check=False)
    return open_bundle(build(wanted).path)


def check(bundle: Bundle, path: Path) -> Any:
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    return check_ort_graph(path, config, stored_schemes(bundle, config))


def maker(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if output in node.output)
    return found


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(x for x in model.graph.initializer if x.name == name)
    return found


def set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    next(a for a in node.attribute if a.name == name).i = value


def other_bits(model: onnx.ModelProto) -> None:
    set_attribute(maker(model, f"{MLP}.down_proj"), "bits", 8)


def other_block(model: onnx.ModelProto) -> None:
    set_attribute(maker(model, f"{MLP}.down_proj"), "block_size", 128)


def other_channels(model: onnx.ModelProto) -> None:
    set_attribute(maker(model, f"{MLP}.down_proj"), "K", 96)


def other_width(model: onnx.ModelProto) -> None:
    set_attribute(maker(model, f"{MLP}.down_proj"), "N", 32)


def other_scales(model: onnx.ModelProto) -> None:
    maker(model, f"{MLP}.down_proj").input[2] = "lm_head.nbits_scales"


def other_linear(model: onnx.ModelProto) -> None:
    node = maker(model, f"{MLP}.down_proj")
    node.input[1], node.input[2] = (
        f"model.layers.0.mlp.down_proj.nbits_{kind}" for kind in ("codes", "scales")
    )


def zero_points(model: onnx.ModelProto) -> None:
    points = TensorProto(name="zero", data_type=TensorProto.UINT8, dims=[1], raw_data=b"0")
    model.graph.initializer.append(points)
    maker(model, f"{MLP}.down_proj").input.append("zero")


def stored_matrix(model: onnx.ModelProto) -> None:
    """Multiply by a constant of the graph's own."""
    raw = bytes(2 * 128 * 64)
    weight = TensorProto(name="own", data_type=TensorProto.FLOAT16, dims=[128, 64], raw_data=raw)
    model.graph.initializer.append(weight)
    node = maker(model, f"{MLP}.down_proj")
    node.CopyFrom(helper.make_node("MatMul", [node.input[0], "own"], node.output, name="x"))


def foreign_operator(model: onnx.ModelProto) -> None:
    maker(model, f"{MLP}.down_proj").op_type = "MatMulBnb4"


def other_sources(model: onnx.ModelProto) -> None:
    """Make the codes of gate and up in the other order."""
    for note in initializer(model, f"{MLP}.gate_up_proj.nbits_codes").metadata_props:
        if note.key == "edgekit.sources":
            note.value = "\n".join(reversed(note.value.split("\n")))


def not_onnx(model: onnx.ModelProto) -> None:
    maker(model, f"{MLP}.silu").op_type = "MulMaybe"


def no_file(model: onnx.ModelProto) -> None:
    initializer(model, "model.norm.weight").external_data[0].value = "blobs/00/00"


CASES: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (other_bits, f"{MLP}.down_proj is planned as w4-g64 but multiplied by 8-bit codes"),
    (other_block, f"{MLP}.down_proj is planned as w4-g64 but its blocks are of 128"),
    (other_channels, f"{MLP}.down_proj is planned as w4-g64 but multiplied over 96 channels"),
    (other_width, f"{MLP}.down_proj has 32 outputs, its linears 64"),
    (other_scales, f"{MLP}.down_proj has codes and scales that do not belong together"),
    (other_linear, "model.layers.0.mlp.down_proj should be multiplied by once, not 2 times"),
    (zero_points, f"{MLP}.down_proj has zero points of its own"),
    (stored_matrix, "x multiplies by own, which is no linear's weight"),
    (foreign_operator, "com.microsoft::MatMulBnb4, which is not of the dialect"),
    (other_sources, "damaged.weights.json does not list what damaged.onnx reads"),
    (not_onnx, "is not valid ONNX"),
    (no_file, "is not valid ONNX: model.norm.weight has no file"),
]


@pytest.mark.parametrize(("damage", "message"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_graph_that_is_not_as_planned_is_refused(
    bundle: Bundle, damage: Callable[[onnx.ModelProto], None], message: str
) -> None:
    """Each way of not applying the plan is named, in one line."""
    source = bundle.path / "ort.float16.onnx"
    model = onnx.load(source, load_external_data=False)
    damage(model)
    path = bundle.path / "damaged.onnx"
    onnx.save(model, path)
    listed = (bundle.path / derived_path(source.name)).read_bytes()
    path.with_name(derived_path(path.name)).write_bytes(listed)
    with pytest.raises(GraphError) as caught:
        check(bundle, path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_census_counts_every_node(bundle: Bundle, dtype: str) -> None:
    """Two products a layer for five linears, one attention, one norm of a sum less than two."""
    report = check(bundle, bundle.path / f"ort.{dtype}.onnx")
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    layers = config.num_hidden_layers
    assert report.linears == {"w4-g64": len(all_linears(config))}
    assert report.census["com.microsoft::MatMulNBits"] == 4 * layers + 1
    assert report.census["com.microsoft::GroupQueryAttention"] == layers
    assert report.census["com.microsoft::SkipSimplifiedLayerNormalization"] == 2 * layers - 1
    assert "MatMul" not in report.census


def test_a_list_that_is_missing_or_wrong_is_named(bundle: Bundle) -> None:
    """A session reads no list whose digest was not checked, and none of other tensors."""
    entry = bundle.graph("target", "ort")
    path = derived_path(entry.path)
    kept = tuple(file for file in bundle.manifest.files if file.path != path)
    unlisted = replace(bundle, manifest=replace(bundle.manifest, files=kept))
    with pytest.raises(BundleError, match=f"does not list {path}"):
        make_derived(unlisted, entry, 1)
    data = (bundle.path / path).read_bytes()
    rows = json.loads(data)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sources": ["lm_head.bias"]}, "is made from a tensor that is not there"),
        ({"shape": [1, 1, 1]}, "do not make"),
    ]
    try:
        for change, message in cases:
            codes = next(row for row in rows["derived"] if row["name"] == "lm_head.nbits_codes")
            damaged = {"derived": [{**codes, **change}]}
            (bundle.path / path).write_text(json.dumps(damaged))
            with pytest.raises(BundleError, match=message):
                make_derived(bundle, entry, 1)
        (bundle.path / path).unlink()
        with pytest.raises(EdgekitError, match="cannot read"):
            check(bundle, bundle.path / entry.path)
    finally:
        (bundle.path / path).write_bytes(data)


def test_heads_that_cannot_be_rotated_get_no_ort_graph() -> None:
    """GroupQueryAttention takes heads of multiples of 16."""
    for dim, dialects in ((16, {"standard", "ort"}), (24, {"standard"})):
        config = model_config_from_hf(make_config(head_dim=dim))
        wanted = wanted_graphs(config, TARGETS["orin"])
        assert {dialect for dialect, _ in wanted} == dialects
        assert wanted[:2] == [("standard", "float16"), ("standard", "float32")]
