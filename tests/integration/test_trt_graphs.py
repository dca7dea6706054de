"""The graph edits before a compile: they keep what they must, and find layers that differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from trt_cases import small_bundle

from edgekit.bundle.reader import Bundle
from edgekit.errors import GraphError
from edgekit.trt.shrink import layer_of, shrink, whole
from edgekit.trt.specialize import specialize

CAPACITY = 100


@pytest.fixture(scope="module", params=["orin", "orin-jp62"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of each dialect with an int8 embedding."""
    return small_bundle(tmp_path_factory.mktemp("graphs"), request.param, "w8a16")


def load(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / bundle.graph("target").path, load_external_data=False)


def run(bundle: Bundle, model: onnx.ModelProto, tokens: int = 5) -> list[np.ndarray[Any, Any]]:
    """Run a graph on ONNX Runtime, where its weights are; returns every output."""
    import onnxruntime as ort

    path = bundle.path / "changed.onnx"
    onnx.save(model, path)
    options = ort.SessionOptions()
    # Its optimizations compute stretches of a float16 graph in float32, others in each graph.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    path.unlink()
    rng = np.random.default_rng(3)
    feed: dict[str, Any] = {
        "input_ids": rng.integers(0, 1000, (1, tokens)),
        "position_ids": np.arange(tokens)[None],
        "attention_mask": np.tri(tokens, CAPACITY, dtype=bool)[None, None],
        "write_index": np.zeros(1, np.int64),
        "logits_index": np.arange(tokens)[None, :, None],
    }
    for value in session.get_inputs():
        if value.name not in feed:
            feed[value.name] = np.zeros((1, value.shape[1], CAPACITY, value.shape[3]), np.float16)
    results: list[np.ndarray[Any, Any]] = session.run(None, feed)
    return results


def test_specialized_graph_computes_the_same(bundle: Bundle) -> None:
    """A static cache and rows looked up after dequantization change no more than a rounding."""
    model = load(bundle)
    before = run(bundle, model)
    specialize(model, CAPACITY)
    assert "Gather" in {node.op_type for node in model.graph.node}
    lookups = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    assert "model.embed_tokens.codes" not in lookups
    assert all(dim.dim_param != "capacity" for v in model.graph.input
               for dim in v.type.tensor_type.shape.dim)  # fmt: skip
    for got, wanted in zip(run(bundle, model), before, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-3)


def test_shrunk_graph_runs(bundle: Bundle) -> None:
    """First and last layer and 1024 rows are left, they run, and nothing of the others is."""
    model = load(bundle)
    shrunk = shrink(model)
    assert (shrunk.kept, shrunk.layers, shrunk.kinds) == ((0, 3), 4, 1)
    assert (shrunk.embedding_rows, shrunk.vocabulary) == (1024, 4096)
    values = [*model.graph.input, *model.graph.output, *model.graph.initializer]
    assert {layer_of(value.name) for value in values} == {None, 0, 3}
    logits, *_ = run(bundle, model)
    assert np.isfinite(logits).all()


def test_shrunk_graph_computes_its_layers(bundle: Bundle) -> None:
    """What is left is the model of those layers: its first cache is that of the whole model."""
    whole_caches = run(bundle, load(bundle))[1:3]
    model = load(bundle)
    shrink(model)
    for got, wanted in zip(run(bundle, model)[1:3], whole_caches, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_layers_that_differ_are_kept(bundle: Bundle) -> None:
    """A layer of another shape, type or operator compiles to other kernels, so it stays."""
    model = load(bundle)
    for tensor in model.graph.initializer:
        if tensor.name == "model.layers.2.mlp.up_proj.codes":
            tensor.data_type = onnx.TensorProto.INT4
    node = next(n for n in model.graph.node if n.name == "model.layers.1.mlp.silu.sigmoid")
    node.op_type = "Tanh"
    assert whole(model).kinds == 3
    assert shrink(model).kept == (0, 1, 2, 3)


def test_float_values_decide_no_kernel(bundle: Bundle) -> None:
    """Layers that differ in an epsilon only are of one kind."""
    model = load(bundle)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon" and layer_of(node.name) == 2:
                attribute.f = 1e-3
    assert shrink(model).kept == (0, 3)


def test_layers_that_are_not_a_chain_are_refused(bundle: Bundle) -> None:
    """A layer that reads past the one before it cannot be cut out."""
    model = load(bundle)
    node = next(n for n in model.graph.node if n.name == "model.layers.3.mlp.residual")
    node.input[0] = "model.layers.0.mlp.residual"
    with pytest.raises(GraphError, match="decoder layer 3 reads"):
        shrink(model)
