"""Models that overflow float16 as they are run finitely in it, in every dialect, as exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from factories import make_config, random_tensors, write_checkpoint
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from rounded_decoder import RoundedDecoder
from test_graph_oracle import Runner, export

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.errors import UnsupportedModelError
from edgekit.evaluate.reference import HiddenStates, ReferenceModel
from edgekit.graph.exponents import Exponents, choose_exponents, require_float16
from edgekit.graph.float16_range import ModelRange, coarse_score_warning, model_range
from edgekit.graph.lowering import Lowering, StandardLowering
from edgekit.graph.lowering_trt103 import Trt103Lowering

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
DIALECTS: dict[str, Lowering] = {
    "standard": StandardLowering(),
    "trt103": Trt103Lowering("float16"),
}


def times(**factors: float) -> Callable[[Tensors], None]:
    """Multiply every weight (biases stay) of the named modules."""

    def edit(tensors: Tensors) -> None:
        for name in tensors:
            module, kind = name.rsplit(".", 2)[-2:]
            if kind == "weight" and module in factors:
                tensors[name] = tensors[name] * np.float32(factors[module])

    return edit


LOUD: dict[str, tuple[str, Callable[[Tensors], None]]] = {
    "keys": ("qwen2", times(q_proj=1e-3, k_proj=2e5)),
    "queries": ("llama", times(q_proj=1e5, k_proj=1e-3)),
    "up": ("qwen2", times(gate_proj=0, up_proj=3e5)),
    "normed": ("qwen3", times(q_proj=3e5, k_proj=1e5, q_norm=30, k_norm=4)),
    "input norm": ("qwen2", times(input_layernorm=4e4, q_proj=3e-5, k_proj=3e-5, v_proj=3e-5)),
    "mlp norm": ("llama", times(post_attention_layernorm=1e5, gate_proj=1e-5, up_proj=1e-5)),
    "final norm": ("qwen3", times(norm=3e5, lm_head=3e-6)),
}
QUIET = ("qwen2", times(input_layernorm=1e-6, q_proj=1e5, k_proj=1e5, v_proj=1e5))
"""Input norms of a layer make subnormal values, which the linears after them make large again."""


def load(tmp_path: Path, family: str, edit: Callable[[Tensors], None]) -> Checkpoint:
    tensors = random_tensors(make_config(family))
    edit(tensors)
    path = tmp_path / "checkpoint"
    return open_checkpoint(
        write_checkpoint(path, family=family, tensors=tensors, tokenizer=False, dtype="f32")
    )


def float64_logits(checkpoint: Checkpoint, ids: Array) -> Array:
    return RoundedDecoder(checkpoint.config, lambda key: read_all(checkpoint.tensor(key))).logits(
        ids
    )


def measure(
    checkpoint: Checkpoint, ids: Array
) -> tuple[Array, HiddenStates, ModelRange, Exponents]:
    """Return logits in float64, and what float16 needs by the reference's maxima."""
    model, config = ReferenceModel(checkpoint.config, checkpoint.tensor), checkpoint.config
    states = model.hidden_states([ids])
    held = model_range(states.maxima, states.final_norm, config.head_dim, qk_norm=config.qk_norm)
    chosen = choose_exponents(states.residual_amax, states.maxima, held, qk_norm=config.qk_norm)
    wanted = float64_logits(checkpoint, ids)
    np.testing.assert_allclose(
        model.logits([ids])[0], wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0
    )
    return wanted, states, held, chosen


class RMSNormalization(OpRun):
    """The operator as ONNX defines it, computed in ``stash_type`` float32; the evaluator is not."""

    op_domain = ""

    def _run(self, x: Array, weight: Array, **attributes: Any) -> tuple[Array]:
        assert (attributes["axis"], attributes["stash_type"]) == (-1, 1)
        wide = x.astype(np.float32)
        mean = np.square(wide).mean(-1, keepdims=True)
        unit = wide / np.sqrt(mean + np.float32(attributes["epsilon"]))
        return (unit.astype(x.dtype) * weight,)


class NodeByNode(Runner):
    """Runs a graph in ONNX's own evaluator: every value is rounded to the type it is declared in.

    ONNX Runtime computes most float16 nodes of the CPU in float32 and hides an overflow.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint, dtype: str) -> None:
        super().__init__(path, checkpoint, 1, dtype)
        evaluator = ReferenceEvaluator(onnx.load(path), new_ops=[RMSNormalization])
        names = [output.name for output in self.session.get_outputs()]
        self.session = SimpleNamespace(
            get_outputs=lambda: [SimpleNamespace(name=name) for name in names], run=evaluator.run
        )


def run(runner: Runner, ids: Array) -> Array:
    """Prefill in two chunks and decode."""
    with np.errstate(all="ignore"):
        parts = [runner.step(ids[None, a:b], a) for a, b in ((0, 7), (7, 11), (11, 12))]
    return np.asarray(np.concatenate(parts, 1)[0])


@pytest.mark.parametrize("case", LOUD)
def test_loud_models_run_in_float16(tmp_path: Path, case: str) -> None:
    """Overflow without the exponents; with them, in both dialects, float64's logits."""
    checkpoint = load(tmp_path, *LOUD[case])
    ids = np.random.default_rng(5).integers(0, 128, 12)
    wanted, states, held, chosen = measure(checkpoint, ids)
    require_float16(states.maxima, held, chosen, qk_norm=checkpoint.config.qk_norm)
    assert any(map(np.any, chosen.to_dict().values()))
    overflown = []
    for name, lowering in DIALECTS.items():
        plain = export(checkpoint, tmp_path / f"{name}-plain", lowering, "float16")
        overflown.append(not np.isfinite(run(NodeByNode(plain, checkpoint, "float16"), ids)).all())
        folded = export(checkpoint, tmp_path / name, lowering, "float16", chosen)
        assert relative_error(folded, checkpoint, ids, wanted) < 0.05, name
    assert any(overflown)


def relative_error(path: Path, checkpoint: Checkpoint, ids: Array, wanted: Array) -> float:
    """Return the mean error of a float16 graph's logits relative to their mean size."""
    logits = run(NodeByNode(path, checkpoint, "float16"), ids).astype(np.float64)
    assert np.isfinite(logits).all()
    return float(np.abs(logits - wanted).mean() / np.abs(wanted).mean())


def test_quiet_norms_keep_their_precision(tmp_path: Path) -> None:
    """Norms that make subnormal float16 values are raised, and the linears after them lowered."""
    checkpoint = load(tmp_path, *QUIET)
    ids = np.random.default_rng(5).integers(0, 128, 12)
    wanted, states, held, chosen = measure(checkpoint, ids)
    require_float16(states.maxima, held, chosen, qk_norm=False)
    assert max(chosen.input_norm) < 0
    for name, lowering in DIALECTS.items():
        plain = export(checkpoint, tmp_path / f"{name}-plain", lowering, "float16")
        folded = export(checkpoint, tmp_path / name, lowering, "float16", chosen)
        before, after = (relative_error(x, checkpoint, ids, wanted) for x in (plain, folded))
        assert after < 0.003 < 5 * after < before, (name, before, after)


def wide(offset: float) -> Callable[[Tensors], None]:
    """Add nearly ``offset`` to every score: by biases of the dimensions that turn slowest."""

    def edit(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                by_head = tensors[name].reshape(-1, 16)  # scores are divided by 4
                by_head[:, -1] = np.sqrt(4 * offset)

    return edit


def test_wide_scores_lose_what_the_warning_says(tmp_path: Path) -> None:
    """Scores of thousands stay finite in both dialects, but float64 is far; a warning says so."""
    ids = np.random.default_rng(5).integers(0, 128, 12)
    errors = {}
    for offset in (16.0, 4096.0):
        folder = tmp_path / f"{offset:g}"
        folder.mkdir()
        checkpoint = load(folder, "qwen2", wide(offset))
        wanted, states, held, chosen = measure(checkpoint, ids)
        require_float16(states.maxima, held, chosen, qk_norm=False)
        warning = coarse_score_warning(states.maxima)
        assert (warning is not None) == (offset > 1000)
        for name, lowering in DIALECTS.items():
            path = export(checkpoint, folder / name, lowering, "float16", chosen)
            errors[name, offset] = relative_error(path, checkpoint, ids, wanted)
    assert warning is not None
    assert "in steps of 4 (2 of 2 layers exceed 512)" in warning
    for name in DIALECTS:
        assert errors[name, 16.0] < 0.01
        assert 5 * errors[name, 16.0] < errors[name, 4096.0] < 0.5


@pytest.mark.parametrize("case", LOUD)
def test_exponents_are_exact(tmp_path: Path, case: str) -> None:
    """In float32 the folded graphs of both dialects compute what the plain ones do."""
    checkpoint = load(tmp_path, *LOUD[case])
    ids = np.random.default_rng(5).integers(0, 128, 12)
    chosen = measure(checkpoint, ids)[3]
    for name, lowering in {**DIALECTS, "trt103": Trt103Lowering("float32")}.items():
        paths = [
            export(checkpoint, tmp_path / f"{name}-{i}", lowering, "float32", exponents)
            for i, exponents in enumerate((None, chosen))
        ]
        plain, folded = (run(Runner(path, checkpoint, 1, "float32"), ids) for path in paths)
        # ONNX Runtime adds up in another order where a scale is 1.
        np.testing.assert_allclose(plain, folded, rtol=0, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (times(q_proj=300, k_proj=300), r"layer \d has attention scores of \d+e?\S*, too near"),
        (times(gate_proj=1e5), r"layer 0 has gate of \S+, too near float16's 65504"),
        (times(norm=1e10, lm_head=1e-10), r"model[.]norm has outputs up to \S+e[+]10 and weights"),
        (
            times(input_layernorm=1e-12, q_proj=1e12, k_proj=1e12, v_proj=1e12),
            r"model[.]layers[.]0[.]input_layernorm has outputs up to \S+e-12 and weights",
        ),
    ],
)
def test_what_cannot_be_scaled_is_refused(
    tmp_path: Path, edit: Callable[[Tensors], None], message: str
) -> None:
    """Scores, gates and norms beyond float16 are refused, by layer and value."""
    checkpoint = load(tmp_path, "qwen2", edit)
    _, states, held, chosen = measure(checkpoint, np.random.default_rng(5).integers(0, 128, 12))
    with pytest.raises(UnsupportedModelError, match=message):
        require_float16(states.maxima, held, chosen, qk_norm=False)
