"""The check of a written graph finds a quantization that was not applied as planned."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from factories import write_checkpoint
from onnx import TensorProto, helper

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.errors import BundleError, GraphError
from edgekit.graph.check import check_graph
from edgekit.graph.exported import check_exported_graph
from edgekit.models.config import ModelConfig, all_linears
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.pipeline.verify import stored_schemes
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module", params=["orin", "orin-jp62"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("check")
    checkpoint = write_checkpoint(root / "checkpoint")
    target, recipe = TARGETS[request.param], load_recipe("w4a16-g64")
    wanted = BuildRequest(str(checkpoint), target, recipe, root / "bundle")
    return open_bundle(build(wanted).path)


def config_of(bundle: Bundle) -> ModelConfig:
    return ModelConfig.from_dict(dict(bundle.manifest.model["config"]))


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / bundle.graph("target").path, load_external_data=False)


def maker(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if output in node.output)
    return found


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(x for x in model.graph.initializer if x.name == name)
    return found


def other_bits(model: onnx.ModelProto) -> None:
    """Put int8 codes of the right shape where int4 codes are planned."""
    codes = initializer(model, f"{UP}.codes")
    codes.data_type = TensorProto.INT8
    codes.data_location = TensorProto.DEFAULT
    del codes.external_data[:]
    codes.raw_data = bytes(64 * 128)


def other_group_size(model: onnx.ModelProto) -> None:
    for attribute in maker(model, f"{UP}.dequantized").attribute:
        if attribute.name == "block_size":
            attribute.i = 32


def other_axis(model: onnx.ModelProto) -> None:
    for attribute in maker(model, f"{UP}.dequantized").attribute:
        if attribute.name == "axis":
            attribute.i = 1


def zero_point(model: onnx.ModelProto) -> None:
    shape = [1, 128]
    tensor = TensorProto(name="zero", data_type=TensorProto.INT4, dims=shape, raw_data=bytes(64))
    model.graph.initializer.append(tensor)
    maker(model, f"{UP}.dequantized").input.append("zero")


def dense_instead_of_codes(model: onnx.ModelProto) -> None:
    """Multiply by a float16 constant where codes are planned."""
    raw = bytes(2 * 64 * 128)
    kind = TensorProto.FLOAT16
    weight = TensorProto(name=f"{UP}.weight", data_type=kind, dims=[64, 128], raw_data=raw)
    model.graph.initializer.append(weight)
    maker(model, UP).input[1] = weight.name


def another_linears_codes(model: onnx.ModelProto) -> None:
    maker(model, UP).input[1] = "model.layers.1.mlp.gate_proj.dequantized"


def extra_matmul(model: onnx.ModelProto) -> None:
    """Multiply once more by codes that another MatMul uses already."""
    node = maker(model, UP)
    extra = helper.make_node("MatMul", list(node.input), ["extra"])
    model.graph.node.append(extra)


def missing_linear(model: onnx.ModelProto) -> None:
    node = maker(model, UP)
    gate = maker(model, "model.layers.1.mlp.gate_proj")
    node.op_type = "Identity"
    del node.input[:]
    node.input.append(gate.output[0])


def custom_domain(model: onnx.ModelProto) -> None:
    """A MatMul of a domain that the ONNX checker does not know."""
    maker(model, UP).domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def not_onnx(model: onnx.ModelProto) -> None:
    maker(model, UP).op_type = "MatMulMaybe"


CASES: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (other_bits, f"{UP} is planned as w4-g64 but its codes are of another type"),
    (other_group_size, f"{UP} is planned as w4-g64 but its group size is 32"),
    (other_axis, f"{UP} is planned as w4-g64 but its scales lie along another axis"),
    (zero_point, f"{UP} is planned as w4-g64 but it has a zero point"),
    (dense_instead_of_codes, f"{UP} should multiply by {UP}.codes, but no MatMul does"),
    (another_linears_codes, f"{UP} should multiply by {UP}.codes, but no MatMul does"),
    (missing_linear, f"{UP} should multiply by {UP}.codes, but no MatMul does"),
    (extra_matmul, "16 weight MatMuls for 15 linears"),
    (custom_domain, "has the operator com.example::MatMul, which is not ONNX's own"),
    (not_onnx, "is not valid ONNX"),
]


@pytest.mark.parametrize(("damage", "message"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_graph_that_is_not_as_planned_is_refused(
    bundle: Bundle, damage: Callable[[onnx.ModelProto], None], message: str
) -> None:
    """Each way of not applying the plan is named, in both dialects."""
    config = config_of(bundle)
    schemes = stored_schemes(bundle, config)
    model = graph_of(bundle)
    damage(model)
    path = bundle.path / "damaged.onnx"
    onnx.save(model, path)
    with pytest.raises(GraphError) as caught:
        check_graph(path, config, schemes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_the_graphs_is_refused(bundle: Bundle) -> None:
    """Codes where the plan has a dense weight, and a lacking blob, are named."""
    config = config_of(bundle)
    schemes = stored_schemes(bundle, config)
    path = bundle.path / bundle.graph("target").path
    with pytest.raises(GraphError, match=r"should multiply by .*up_proj\.weight"):
        check_graph(path, config, {**schemes, UP: None})
    lone = bundle.path.parent / path.name
    lone.write_bytes(path.read_bytes())
    with pytest.raises(GraphError, match="is not valid ONNX"):
        check_graph(lone, config, schemes)


def test_the_census_counts_every_node(bundle: Bundle) -> None:
    """The report has the graph's operators, one DequantizeLinear and MatMul for each linear."""
    config = config_of(bundle)
    entry = bundle.graph("target")
    report = check_graph(bundle.path / entry.path, config, stored_schemes(bundle, config))
    linears, layers = len(all_linears(config)), config.num_hidden_layers
    assert report.opset == entry.opset
    assert report.linears == {"w4-g64": linears}
    assert report.census["DequantizeLinear"] == linears
    assert sum(report.census.values()) == len(graph_of(bundle).graph.node)
    if entry.dialect == "standard":
        assert report.census["MatMul"] == linears
        assert report.census["Attention"] == layers
        assert report.census["TensorScatter"] == 2 * layers
        assert report.census["RMSNormalization"] == 2 * layers + 1
        assert report.census["RotaryEmbedding"] == 2 * layers
    else:  # queries by old and new keys, weights by old and new values
        assert report.census["MatMul"] == linears + 4 * layers
        assert not {"Attention", "TensorScatter", "RMSNormalization"} & set(report.census)


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        ("w8-g64", GraphError, "planned as w8-g64 but its codes are of another type"),
        ("w4-g32", GraphError, "planned as w4-g32 but its group size is 64"),
        ("w4-channel", GraphError, "planned as w4-channel but its group size is 64"),
        ("w3-g64", BundleError, "'w3-g64' is no scheme"),
    ],
)
def test_an_exported_graph_is_held_to_its_labels(
    bundle: Bundle, label: str, error: type[Exception], message: str
) -> None:
    """Bits and group size of another exporter's graph are those its tensors say."""
    labels = dict.fromkeys([x.name for x in all_linears(config_of(bundle))], "w4-g64")
    path = bundle.path / bundle.graph("target").path
    assert check_exported_graph(path, labels).linears == {"w4-g64": len(labels)}
    with pytest.raises(error, match=message):
        check_exported_graph(path, {**labels, UP: label})
