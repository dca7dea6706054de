"""The exported graphs compute what transformers computes, for every family and dialect.

``pytest tests/integration/test_graph_oracle.py --checkpoint DIR`` adds any local checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from factories import EXAMPLE, make_config, random_tensors, write_checkpoint
from test_oracle_transformers import FAMILIES as ORACLE_FAMILIES
from test_oracle_transformers import oracle_logits

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.contracts import engine_io
from edgekit.contracts.derived import derived_bytes, derived_path
from edgekit.contracts.manifest import GraphEntry
from edgekit.engine.derived import as_ort_values, make_derived, make_tensor
from edgekit.graph.builder import ActivationDtype, derived_tensors
from edgekit.graph.decoder import DecoderSpec, build_decoder
from edgekit.graph.exponents import Exponents
from edgekit.graph.lowering import Lowering, StandardLowering
from edgekit.graph.lowering_ort import OrtLowering
from edgekit.graph.lowering_trt103 import Trt103Lowering
from edgekit.graph.weights import ROPE_COS, ROPE_SIN, GraphTensor, dense_name
from edgekit.models.config import all_linears
from edgekit.models.rope import cos_sin_tables
from edgekit.pipeline.build import build
from edgekit.pipeline.graphs import check_dialect
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

Array = np.ndarray[Any, Any]
CAPACITY = 24
POSITIONS = 64


def store(folder: Path, name: str, array: Array) -> GraphTensor:
    folder.joinpath(name).write_bytes(np.ascontiguousarray(array).tobytes())
    return GraphTensor(name, str(array.dtype), array.shape, name)  # type: ignore[arg-type]


def export(
    checkpoint: Checkpoint,
    folder: Path,
    lowering: Lowering,
    dtype: ActivationDtype = "float32",
    exponents: Exponents | None = None,
) -> Path:
    """Write an unquantized graph of a checkpoint, every weight in float32."""
    folder.mkdir()
    config, chosen = checkpoint.config, exponents or Exponents()
    linears = {x.weight_key: x.name for x in all_linears(config)}
    weights: dict[str, GraphTensor] = {}

    def put(name: str, array: Array, exponent: int = 0) -> None:
        weights[name] = store(folder, name, array * np.float32(2.0**exponent))

    for key in checkpoint.names:
        array = read_all(checkpoint.tensor(key))
        if key == "model.embed_tokens.weight" or key not in linears:
            put(key, array, chosen.of_tensor(key))
        if key in linears:
            name = linears[key]
            put(dense_name(name), array.T, chosen.of_weight(name))
    cos, sin = cos_sin_tables(config.rope, config.head_dim, np.arange(POSITIONS))
    put(ROPE_COS, cos)
    put(ROPE_SIN, sin)
    schemes = dict.fromkeys([x.name for x in all_linears(config)])
    spec = DecoderSpec(config, weights, schemes, dtype, chosen)
    path = folder / "graph.onnx"
    model = build_decoder(spec, lowering, "test")
    onnx.save(model, path)
    if made := derived_tensors(model):
        path.with_name(derived_path(path.name)).write_bytes(derived_bytes(made))
    check_dialect(path, "ort" if made else "", config, schemes)
    return path


def made_from_files(path: Path) -> dict[str, Array]:
    """Make the weights that an unquantized graph of :func:`export` reads and no file holds."""
    model = onnx.load(path, load_external_data=False)
    made = {}
    for tensor in derived_tensors(model):
        # Rows of a table, or vectors: whatever the number of rows is, the width is the result's.
        width = tensor.shape[-1] if len(tensor.shape) > 1 else -1
        files = [np.fromfile(path.with_name(name), np.float32) for name in tensor.sources]
        sources = [data if width < 0 else data.reshape(-1, width) for data in files]
        made[tensor.name] = make_tensor(tensor, sources, ["float32"] * len(sources))
    return made


def computing_in_float32(path: Path) -> Path:
    """Return a copy of a graph whose MatMulNBits do not round activations to int8."""
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    copy = path.with_suffix(".float32.onnx")
    onnx.save(model, copy)
    return copy


class Runner:
    """Runs a graph and keeps its cache, whichever way the dialect takes and returns it.

    Args:
        path: The graph.
        checkpoint: What it was made from.
        batch: Sequences.
        dtype: Activation type.
        made: Weights that are made at load.
        accurate: Without products of int8 activations.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        batch: int,
        dtype: str,
        *,
        made: dict[str, Array] | None = None,
        accurate: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        if accurate:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            path = computing_in_float32(path)
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if made:
            options.add_external_initializers(*as_ort_values(made))
        self.session = ort.InferenceSession(str(path), options)
        self.inputs = {value.name for value in self.session.get_inputs()}
        config = checkpoint.config
        self.layers, self.batch = config.num_hidden_layers, batch
        shape = (batch, config.num_key_value_heads, CAPACITY, config.head_dim)
        names = [
            f(i) for i in range(self.layers) for f in (engine_io.past_key, engine_io.past_value)
        ]
        self.cache = {name: np.zeros(shape, dtype) for name in names}

    def step(self, ids: Array, start: int | Array) -> Array:
        """Run ids [B, S], row b at positions ``start[b]`` onward; return logits [B, S, V]."""
        tokens, starts = ids.shape[1], np.broadcast_to(start, self.batch)
        if engine_io.SEQLENS_K in self.inputs and tokens > 1 and starts.any():
            rows = [slice(row, row + 1) for row in range(self.batch)]
            return np.concatenate([self._run(ids[row], starts[row], row) for row in rows])
        return self._run(ids, starts, slice(None))

    def _run(self, ids: Array, starts: Array, rows: slice) -> Array:
        batch, tokens = ids.shape
        positions = starts[:, None] + np.arange(tokens)
        feed = {
            engine_io.INPUT_IDS: ids,
            engine_io.POSITION_IDS: positions,
            engine_io.ATTENTION_MASK: (np.arange(CAPACITY) <= positions[..., None])[:, None],
            engine_io.WRITE_INDEX: np.asarray(starts, np.int64),
            engine_io.SEQLENS_K: (positions[:, -1]).astype(np.int32),
            engine_io.TOTAL_SEQUENCE_LENGTH: np.array([positions.max() + 1], np.int32),
            engine_io.LOGITS_INDEX: np.repeat(np.arange(tokens)[None, :, None], batch, axis=0),
            **{name: np.ascontiguousarray(cache[rows]) for name, cache in self.cache.items()},
        }
        feed = {name: value for name, value in feed.items() if name in self.inputs}
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feed), strict=True))
        for layer in range(self.layers):
            for kind in ("key", "value"):
                cache = self.cache[f"past_{kind}_{layer}"][rows]
                if f"present_{kind}_{layer}" in outputs:
                    cache[:] = outputs[f"present_{kind}_{layer}"]
                    continue
                for row, start in enumerate(starts):
                    new = outputs[f"new_{kind}_{layer}"][row]
                    cache[row, :, start : start + tokens] = new
        logits: Array = outputs[engine_io.LOGITS]
        return logits


FAMILIES: dict[str, dict[str, Any]] = {
    **ORACLE_FAMILIES,
    "llama-sharded": {"family": "llama", "kv_heads": 2, "layout": "legacy", "shards": 2},
}
DIALECTS: dict[str, Lowering] = {
    "standard": StandardLowering(),
    "trt103": Trt103Lowering("float32"),
    "ort": OrtLowering("float32"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of ``checkpoint_path`` on each family, the example and every ``--checkpoint``."""
    if "checkpoint_path" in metafunc.fixturenames:
        cases = {**{name: name for name in FAMILIES}, "trained": EXAMPLE}
        cases |= {str(path): path for path in metafunc.config.getoption("checkpoint")}
        metafunc.parametrize("checkpoint_path", cases.values(), ids=cases.keys(), indirect=True)


@pytest.fixture
def checkpoint_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if isinstance(request.param, Path):
        return request.param
    options = FAMILIES[request.param]
    return write_checkpoint(tmp_path / "checkpoint", tokenizer=False, **options)


@pytest.mark.calibrate
@pytest.mark.parametrize("batch", [1, 4])
def test_graphs_equal_transformers(checkpoint_path: Path, tmp_path: Path, batch: int) -> None:
    """Prefill, chunked prefill and decode of every dialect give transformers' logits.

    Decode is ragged: row b is b tokens behind.
    """
    checkpoint = open_checkpoint(checkpoint_path)
    ids = np.random.default_rng(7).integers(0, checkpoint.config.vocab_size, (batch, 16))
    wanted = np.stack(oracle_logits(checkpoint_path, list(ids)))
    tolerance = 2e-5 * float(np.abs(wanted).max())
    behind, rows = np.arange(batch), np.arange(batch)
    caches = {}
    for name, lowering in DIALECTS.items():
        path = export(checkpoint, tmp_path / name, lowering)
        runner = Runner(path, checkpoint, batch, "float32", made=made_from_files(path))
        chunks = [runner.step(ids[:, :7], 0), runner.step(ids[:, 7:11], 7)]
        np.testing.assert_allclose(
            np.concatenate(chunks, 1), wanted[:, :11], atol=tolerance, rtol=0
        )
        for step in range(11, 15):
            at = step - behind
            logits = runner.step(ids[rows, at][:, None], at)[:, 0]
            np.testing.assert_allclose(logits, wanted[rows, at], atol=tolerance, rtol=0)
        caches[name] = runner.cache
    for other in ("trt103", "ort"):
        for key, cache in caches["standard"].items():
            np.testing.assert_allclose(cache, caches[other][key], atol=1e-5)


def test_exponents_do_not_change_the_function(tmp_path: Path) -> None:
    """Powers of two folded into the weights leave the float32 logits as they were."""
    path = write_checkpoint(tmp_path / "checkpoint", family="qwen2", tokenizer=False)
    checkpoint = open_checkpoint(path)
    ids = np.random.default_rng(3).integers(0, checkpoint.config.vocab_size, (1, 9))
    chosen = Exponents(residual=5, mlp=(3, 1), value=(2, 0))
    plain = export(checkpoint, tmp_path / "plain", StandardLowering())
    folded = export(checkpoint, tmp_path / "folded", StandardLowering(), exponents=chosen)
    logits = [Runner(p, checkpoint, 1, "float32").step(ids, 0) for p in (plain, folded)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-6 * np.abs(logits[0]).max())


@pytest.mark.parametrize("recipe", ["w4a16-g32", "w8a16"])
@pytest.mark.parametrize("family", ["qwen2-tied", "llama-mha-bias", "llama-gqa-llama3", "qwen3"])
def test_quantized_families_are_equal(tmp_path: Path, family: str, recipe: str) -> None:
    """In float32 the ort graph computes what the standard one does, from the same blobs."""
    path = write_checkpoint(tmp_path / "checkpoint", **FAMILIES[family])
    bundle, checkpoint = built(path, "cpu", recipe, tmp_path), open_checkpoint(path)
    ids = np.random.default_rng(2).integers(0, 4096, (4, 11))
    found = {}
    for graph in bundle.manifest.graphs:
        runner = bundle_runner(bundle, graph, checkpoint, 4)
        parts = [runner.step(ids[:, a:b], a) for a, b in ((0, 6), (6, 10), (10, 11))]
        found[graph.name] = np.concatenate(parts, 1), runner.cache
    assert set(found) == {"standard.float32", "ort.float32"}
    (wanted, cache), (logits, rows) = found["standard.float32"], found["ort.float32"]
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    for key, values in rows.items():
        np.testing.assert_allclose(values, cache[key], rtol=0, atol=2e-5)


def built(path: Path, target: str, recipe: str, folder: Path) -> Bundle:
    """Build a checkpoint without judging it."""
    request = BuildRequest(
        model=str(path),
        target=TARGETS[target],
        recipe=load_recipe(recipe),
        out=folder / target,
        check=False,
    )
    return open_bundle(build(request).path)


def bundle_runner(bundle: Bundle, graph: GraphEntry, checkpoint: Checkpoint, batch: int) -> Runner:
    """Run a bundle's graph without int8 activations."""
    made = make_derived(bundle, graph, 1) if graph.dialect == "ort" else None
    path, dtype = bundle.path / graph.path, graph.activation_dtype
    return Runner(path, checkpoint, batch, dtype, made=made, accurate=True)


@pytest.mark.parametrize("recipe", ["w4a16-g64", "w8a16"])
def test_dialects_are_equal_as_built(tmp_path: Path, recipe: str) -> None:
    """Quantized float16 graphs with exponents give the float32 graph's logits in every dialect."""
    tensors = random_tensors(make_config("qwen2", vocab=4096))
    factors = {"o_proj": 3000, "down_proj": 30, "up_proj": 5000, "k_proj": 2e4, "q_proj": 5e-5}
    for name in tensors:
        module, kind = name.split(".")[-2:]
        tensors[name] = tensors[name] * (factors.get(module, 1) if kind == "weight" else 1)
    path = write_checkpoint(tmp_path / "loud", tensors=tensors)
    checkpoint, ids = open_checkpoint(path), np.random.default_rng(2).integers(0, 4096, (1, 11))
    found: dict[str, tuple[Array, dict[str, Array]]] = {}
    for target in ("orin", "orin-jp62"):
        bundle = built(path, target, recipe, tmp_path)
        exponents = bundle.manifest.f16_exponents
        assert exponents["residual"]
        assert any(exponents["mlp"])
        assert any(exponents["key"])
        for graph in bundle.manifest.graphs:
            runner = bundle_runner(bundle, graph, checkpoint, 1)
            parts = [runner.step(ids[:, a:b], a) for a, b in ((0, 6), (6, 10), (10, 11))]
            found[graph.name] = np.concatenate(parts, 1).astype(np.float32), runner.cache
    wanted, cache = found["standard.float32"]
    assert set(found) == {
        "standard.float32", "standard.float16", "trt103.float16", "ort.float32", "ort.float16",
    }  # fmt: skip
    for logits, rows in found.values():
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=0.01 * np.abs(wanted).max())
        for key, values in rows.items():
            largest = np.abs(cache[key]).max()
            np.testing.assert_allclose(values, cache[key], rtol=0, atol=0.01 * largest)
