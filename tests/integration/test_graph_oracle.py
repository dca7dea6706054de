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

from edgekit.bundle.reader import open_bundle
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.contracts import engine_io
from edgekit.graph.builder import ActivationDtype
from edgekit.graph.check import check_graph
from edgekit.graph.decoder import DecoderSpec, build_decoder
from edgekit.graph.exponents import Exponents
from edgekit.graph.lowering import Lowering, StandardLowering
from edgekit.graph.lowering_trt103 import Trt103Lowering
from edgekit.graph.weights import ROPE_COS, ROPE_SIN, GraphTensor, dense_name
from edgekit.models.config import all_linears
from edgekit.models.rope import cos_sin_tables
from edgekit.pipeline.build import build
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
    onnx.save(build_decoder(spec, lowering, "test"), path)
    check_graph(path, config, schemes)
    return path


class Runner:
    """Runs a graph and keeps its cache, whichever way the dialect returns it."""

    def __init__(
        self, path: Path, checkpoint: Checkpoint, batch: int, dtype: str, *, accurate: bool = False
    ) -> None:
        options = ort.SessionOptions()
        if accurate:  # no fused products of int8 activations
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options)
        config = checkpoint.config
        self.layers, self.batch = config.num_hidden_layers, batch
        shape = (batch, config.num_key_value_heads, CAPACITY, config.head_dim)
        names = [
            f(i) for i in range(self.layers) for f in (engine_io.past_key, engine_io.past_value)
        ]
        self.cache = {name: np.zeros(shape, dtype) for name in names}

    def step(self, ids: Array, start: int) -> Array:
        """Run ids [B, S] at positions ``start`` onward; return logits [B, S, V]."""
        tokens = ids.shape[1]
        positions = np.arange(start, start + tokens)
        mask = np.arange(CAPACITY)[None] <= positions[:, None]
        rows = lambda x: np.repeat(x[None], self.batch, axis=0)  # noqa: E731
        feed = {
            engine_io.INPUT_IDS: ids,
            engine_io.POSITION_IDS: rows(positions),
            engine_io.ATTENTION_MASK: rows(mask[None]),
            engine_io.WRITE_INDEX: np.full(self.batch, start),
            engine_io.LOGITS_INDEX: rows(np.arange(tokens)[:, None]),
            **self.cache,
        }
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, feed), strict=True))
        for layer in range(self.layers):
            for kind in ("key", "value"):
                past = f"past_{kind}_{layer}"
                if f"present_{kind}_{layer}" in outputs:
                    self.cache[past] = outputs[f"present_{kind}_{layer}"]
                else:
                    new = outputs[f"new_{kind}_{layer}"]
                    self.cache[past][:, :, start : start + tokens] = new
        logits: Array = outputs[engine_io.LOGITS]
        return logits


FAMILIES: dict[str, dict[str, Any]] = {
    **ORACLE_FAMILIES,
    "llama-sharded": {"family": "llama", "kv_heads": 2, "layout": "legacy", "shards": 2},
}
DIALECTS: dict[str, Lowering] = {
    "standard": StandardLowering(),
    "trt103": Trt103Lowering("float32"),
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
    """Prefill, chunked prefill and decode of both dialects give transformers' logits."""
    checkpoint = open_checkpoint(checkpoint_path)
    ids = np.random.default_rng(7).integers(0, checkpoint.config.vocab_size, (batch, 12))
    wanted = np.stack(oracle_logits(checkpoint_path, list(ids)))
    scale = float(np.abs(wanted).max())
    caches = {}
    for name, lowering in DIALECTS.items():
        runner = Runner(export(checkpoint, tmp_path / name, lowering), checkpoint, batch, "float32")
        chunks = [runner.step(ids[:, :7], 0), runner.step(ids[:, 7:10], 7)]
        chunks += [runner.step(ids[:, i : i + 1], i) for i in (10, 11)]
        np.testing.assert_allclose(np.concatenate(chunks, 1), wanted, atol=2e-5 * scale, rtol=0)
        caches[name] = runner.cache
    for key, cache in caches["standard"].items():
        np.testing.assert_allclose(cache, caches["trt103"][key], atol=1e-5)


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
        request = BuildRequest(
            model=str(path),
            target=TARGETS[target],
            recipe=load_recipe(recipe),
            out=tmp_path / target,
            check=False,
        )
        bundle = open_bundle(build(request).path)
        exponents = bundle.manifest.f16_exponents
        assert exponents["residual"]
        assert any(exponents["mlp"])
        assert any(exponents["key"])
        for graph in bundle.manifest.graphs:
            dtype = graph.activation_dtype
            runner = Runner(bundle.path / graph.path, checkpoint, 1, dtype, accurate=True)
            parts = [runner.step(ids[:, a:b], a) for a, b in ((0, 6), (6, 10), (10, 11))]
            found[graph.name] = np.concatenate(parts, 1).astype(np.float32), runner.cache
    wanted, cache = found["standard.float32"]
    assert set(found) == {"standard.float32", "standard.float16", "trt103.float16"}
    for logits, rows in found.values():
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=0.01 * np.abs(wanted).max())
        for key, values in rows.items():
            largest = np.abs(cache[key]).max()
            np.testing.assert_allclose(values, cache[key], rtol=0, atol=0.01 * largest)
