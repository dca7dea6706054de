"""An exported graph, quantized: near the float graph, stored as the manifest says, cached right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from optimum_graph import POSITIONS, VOCAB, make_graph, save_graph

from edgekit.bundle.writer import BundleWriter
from edgekit.engine.growing_cache import GrowingCacheSession
from edgekit.errors import ContextOverflowError, EngineError, GraphError, RecipeError
from edgekit.exporters.exported_graph import open_exported
from edgekit.exporters.requantize import Requantized, requantize
from edgekit.graph.exported import check_exported_graph
from edgekit.progress import SILENT
from edgekit.recipe import Recipe, parse_recipe

Array = np.ndarray[Any, Any]
TOKENS = np.random.default_rng(1).integers(0, VOCAB, 24).tolist()


def recipe(
    dtype: str = "int4", group: int = 32, embedding: str = "float16", more: str = ""
) -> Recipe:
    table = f'dtype = "{dtype}"\ngroup_size = {group}\n'
    return parse_recipe(
        f'schema_version = 1\nname = "test"\n[quant.linear]\n{table}[quant.lm_head]\n{table}'
        f'[quant.embedding]\ndtype = "{embedding}"\n{more}',
        "test",
    )


def run(path: Path, *, exact: bool = True) -> Array:
    session = GrowingCacheSession(path, max_context=POSITIONS, threads=1, exact=exact)
    return session.prefill(0, TOKENS, all_logits=True)


def store(graph: Path, out: Path, chosen: Recipe, threads: int = 1) -> Requantized:
    """Requantize a graph into ``out``, which then holds the graph and its blobs."""
    exported = open_exported(graph)
    with BundleWriter(out) as writer:
        result = requantize(exported, chosen, VOCAB, writer, threads=threads, progress=SILENT)
        writer.add_file("g.onnx", exported.proto.SerializeToString(deterministic=True))
        writer.work.rename(out)
    return result


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_graph(make_graph(), tmp_path_factory.mktemp("exported"))


@pytest.mark.parametrize(
    ("chosen", "labels", "tolerance"),
    [
        (recipe("float16"), {"dense": 13}, 2e-3),
        (recipe("int8", 0, "int8"), {"w8-channel": 13}, 0.03),
        (recipe("int8", 32), {"w8-g32": 13}, 0.02),
        (recipe("int4", 32), {"w4-g32": 13}, 0.3),
        (recipe("int4", 128), {"dense": 11, "w4-g128": 2}, 0.3),
    ],
    ids=["float16", "int8-channel", "int8", "int4", "int4-wide"],
)
def test_logits_stay_near_the_float_graph(
    graph: Path, tmp_path: Path, chosen: Recipe, labels: dict[str, int], tolerance: float
) -> None:
    """Every scheme computes the same function up to its rounding; the census says what it is."""
    wanted = run(graph)
    result = store(graph, tmp_path / "b", chosen)
    assert result.labels == labels
    stored = {name: s.label for name, s in result.schemes.items() if s is not None}
    report = check_exported_graph(tmp_path / "b/g.onnx", stored)
    assert report.opset == 21
    error = np.abs(run(tmp_path / "b/g.onnx") - wanted).max() / np.abs(wanted).max()
    assert error < tolerance
    fused = run(tmp_path / "b/g.onnx", exact=False)
    assert np.abs(fused - wanted).max() / np.abs(wanted).max() < tolerance + 0.05


def test_linears_are_named_by_their_scope(graph: Path, tmp_path: Path) -> None:
    """Names are the checkpoint's, and every float weight is a blob."""
    result = store(graph, tmp_path / "b", recipe())
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.fc2", "lm_head"} < set(
        result.schemes
    )
    proto = onnx.load(tmp_path / "b/g.onnx", load_external_data=False)
    inside = [t for t in proto.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    assert all(t.data_type == onnx.TensorProto.INT64 or not t.dims for t in inside)
    entries = {entry.name: entry for entry in result.entries}
    assert entries["model.embed_tokens.weight"].dtype == "float16"
    assert entries["model.positions.weight"].dtype == "float32"
    assert entries["model.layers.0.mlp.fc1.bias"].shape == (128,)


def test_bytes_do_not_depend_on_threads_or_layout(graph: Path, tmp_path: Path) -> None:
    """One thread or two, weights inside the file or beside it: the same blobs."""
    inside = save_graph(make_graph(), tmp_path / "inside", external=False)
    one = store(graph, tmp_path / "one", recipe())
    two = store(inside, tmp_path / "two", recipe(), threads=2)
    assert one.entries == two.entries
    assert (tmp_path / "one/g.onnx").read_bytes() == (tmp_path / "two/g.onnx").read_bytes()


def test_override_and_head_have_their_own_tables(graph: Path, tmp_path: Path) -> None:
    """Overrides win; one that matches nothing is an error."""
    text = '[[quant.override]]\npattern = "model.layers.0.*"\ndtype = "int8"\n'
    result = store(graph, tmp_path / "b", recipe(more=text))
    assert result.labels == {"w4-g32": 7, "w8-g64": 6}
    text = '[[quant.override]]\npattern = "nothing.*"\ndtype = "int8"\n'
    with pytest.raises(RecipeError, match="matches no linear"):
        store(graph, tmp_path / "c", recipe(more=text))


def test_tied_head_by_transpose_is_quantized(tmp_path: Path) -> None:
    """A head that is the transposed embedding gets codes; the embedding stays what it was."""
    model = make_graph()
    head = model.graph.node[-1]
    head.input[1] = "turned"
    names = ["model.embed_tokens.weight"]
    model.graph.node.insert(
        0, onnx.helper.make_node("Transpose", names, ["turned"], name="t", perm=[1, 0])
    )
    path = save_graph(model, tmp_path / "tied")
    result = store(path, tmp_path / "b", recipe("int8", 32))
    assert result.schemes["lm_head"] is not None
    assert {e.name for e in result.entries} >= {"lm_head.codes", "model.embed_tokens.weight"}
    np.testing.assert_allclose(run(tmp_path / "b/g.onnx"), run(path), atol=0.3)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    """An export whose data is shorter than it says is not read past its end."""
    path = save_graph(make_graph(), tmp_path)
    data = tmp_path / "model.onnx_data"
    data.write_bytes(data.read_bytes()[: 1 << 20])
    with pytest.raises(GraphError, match="are not in 'model"):
        store(path, tmp_path / "b", recipe())


def test_caches_equal_a_full_forward(graph: Path) -> None:
    """Chunks, single steps and a rewind give the logits of one forward pass."""
    wanted = run(graph)
    session = GrowingCacheSession(
        graph, max_context=POSITIONS, max_sequences=2, threads=1, prefill_chunk=5, exact=True
    )
    parts = session.prefill(0, TOKENS[:11], all_logits=True)
    np.testing.assert_allclose(parts, wanted[:11], atol=1e-4)
    session.prefill(1, TOKENS[:4])
    for position in range(11, 15):
        row = session.decode([0], [TOKENS[position]], [position])[0]
        np.testing.assert_allclose(row, wanted[position], atol=1e-4)
    both = session.decode([1, 0], [TOKENS[4], TOKENS[15]], [4, 15])
    np.testing.assert_allclose(both, wanted[[4, 15]], atol=1e-4)
    again = session.prefill(0, TOKENS[6:], 6, all_logits=True)
    np.testing.assert_allclose(again, wanted[6:], atol=1e-4)
    session.release(0)
    with pytest.raises(EngineError, match="holds 0 tokens, not 3"):
        session.decode([0], [1], [3])


def test_wrong_calls_are_refused(graph: Path) -> None:
    """Slots, positions, tokens and contexts are checked before the engine runs."""
    session = GrowingCacheSession(graph, max_context=8, threads=1)
    with pytest.raises(ContextOverflowError, match="9 tokens"):
        session.prefill(0, TOKENS[:9])
    with pytest.raises(EngineError, match="no slot 1"):
        session.prefill(1, [1])
    with pytest.raises(EngineError, match="not in the vocabulary"):
        session.prefill(0, [VOCAB])
    with pytest.raises(EngineError, match="no tokens"):
        session.prefill(0, [])
    with pytest.raises(EngineError, match="repeat"):
        session.decode([0, 0], [1, 1], [0, 0])


def test_another_graph_is_refused(tmp_path: Path) -> None:
    """A graph without Optimum's inputs is named as such."""
    model = make_graph()
    model.graph.input[3].name = "something_else"
    path = tmp_path / "model.onnx"
    for node in model.graph.node:
        if node.input[0] == "past_key_values.0.key":
            node.input[0] = "something_else"
    onnx.save(model, path)
    with pytest.raises(EngineError, match="does not have the inputs of Optimum's decoders"):
        GrowingCacheSession(path, max_context=8)
