"""The float32 reference: how it is cut never changes what it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evaluate_fakes import ArrayTensors, make_model, random_windows
from factories import make_config, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CheckpointError
from edgekit.evaluate.reference import ReferenceModel
from edgekit.models.families import model_config_from_hf

CONFIG = make_config("qwen3", head_dim=32)
ARRAYS = random_tensors(CONFIG)
WINDOWS = random_windows(128, [9, 1, 17, 12])
ROUNDING = 4e-6
"""Of the largest logit: BLAS sums in another order for another number of rows."""


def model(**options: Any) -> ReferenceModel:
    return ReferenceModel(model_config_from_hf(CONFIG), ArrayTensors(ARRAYS), **options)


WHOLE = model(threads=1).logits(WINDOWS)


@settings(max_examples=15)
@given(
    strip_bytes=st.integers(4000, 100_000),
    activation_bytes=st.integers(1, 200_000),
    threads=st.integers(1, 3),
)
def test_cutting_changes_nothing(strip_bytes: int, activation_bytes: int, threads: int) -> None:
    """Strips, blocks and threads change logits by float32 rounding only."""
    cut = model(strip_bytes=strip_bytes, activation_bytes=activation_bytes, threads=threads)
    for ours, whole in zip(cut.logits(WINDOWS), WHOLE, strict=True):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=ROUNDING * np.abs(whole).max())


def test_long_sequences_attend_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over blocks of queries is attention over all of them."""
    monkeypatch.setattr("edgekit.evaluate.reference.SCORE_BYTES", 4 * 4 * 17 * 3)
    for ours, whole in zip(model().logits(WINDOWS), WHOLE, strict=True):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=ROUNDING * np.abs(whole).max())


def test_sequences_do_not_see_each_other() -> None:
    """A sequence alone gives what it gives among others."""
    for window, whole in zip(WINDOWS, WHOLE, strict=True):
        alone = model().logits([window])[0]
        np.testing.assert_allclose(alone, whole, rtol=0, atol=ROUNDING * np.abs(whole).max())


def test_the_future_is_not_seen() -> None:
    """Changing a token changes no logits before it, and changes its own."""
    changed = WINDOWS[2].copy()
    changed[8] = (changed[8] + 1) % 128
    logits = model().logits([changed])[0]
    np.testing.assert_allclose(logits[:8], WHOLE[2][:8], atol=ROUNDING * np.abs(WHOLE[2]).max())
    assert np.abs(logits[8] - WHOLE[2][8]).max() > 1e-3


@settings(max_examples=10)
@given(strip_bytes=st.integers(2000, 40_000), threads=st.integers(1, 2))
def test_scores_are_those_of_whole_logits(strip_bytes: int, threads: int) -> None:
    """Streamed log-probabilities and best tokens are those of the softmax of whole logits."""
    reference = model(strip_bytes=strip_bytes, threads=threads)
    wanted = [np.append(window[1:], -1) for window in WINDOWS]
    scores = reference.scores(reference.hidden_states(WINDOWS).windows, wanted, top_k=3)
    for score, tokens, whole in zip(scores, wanted, WHOLE, strict=True):
        logits = whole.astype(np.float64)
        likely = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        rows = np.arange(len(tokens) - 1)
        np.testing.assert_allclose(score.log_probability[:-1], likely[rows, tokens[:-1]], atol=1e-4)
        assert np.isnan(score.log_probability[-1])
        np.testing.assert_allclose(
            score.top_log_probability, -np.sort(-likely, axis=1)[:, :3], atol=1e-4
        )


def test_scores_in_groups_of_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring in several groups gives the same, sequence by sequence."""
    reference = model()
    states = reference.hidden_states(WINDOWS).windows
    wanted = [np.append(window[1:], -1) for window in WINDOWS]
    whole = reference.scores(states, wanted)
    monkeypatch.setattr("edgekit.evaluate.reference.LOGIT_BYTES", 4 * 128 * 10)
    for one, other in zip(reference.scores(states, wanted), whole, strict=True):
        np.testing.assert_allclose(one.log_probability, other.log_probability, atol=1e-6)
        np.testing.assert_array_equal(one.top_ids, other.top_ids)


def test_tied_embeddings_are_the_head() -> None:
    """With tied embeddings the head reads the embedding's tensor."""
    tied = make_model(tied=True)

    def copy_embedding(arrays: dict[str, Any]) -> None:
        arrays.update(random_tensors(make_config(tied=True)))
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]

    untied = make_model(copy_embedding, tied=False)
    np.testing.assert_array_equal(tied.logits(WINDOWS)[0], untied.logits(WINDOWS)[0])


def test_maxima_show_what_float16_cannot_hold() -> None:
    """Activations of 1e5 in one layer are found in that layer's maxima, and only there."""

    def amplify(arrays: dict[str, Any]) -> None:
        arrays["model.layers.1.mlp.up_proj.weight"] *= 1e6
        arrays["model.layers.0.self_attn.v_proj.bias"][:] = -7e4

    plain, loud = make_model().hidden_states(WINDOWS), make_model(amplify).hidden_states(WINDOWS)
    assert max(layer.mlp_product for layer in plain.maxima) < 1e3
    assert loud.maxima[0].mlp_product < 1e3
    assert loud.maxima[1].mlp_product > 65504
    assert loud.maxima[0].value == pytest.approx(7e4, rel=0.01)
    assert loud.residual_amax == max(layer.residual for layer in loud.maxima)
    assert plain.residual_amax >= plain.embedding_amax > 0


def test_maxima_see_what_products_and_biases_hide() -> None:
    """Up behind a closed gate, and keys that a bias brings back into range, are found."""

    def amplify(arrays: dict[str, Any]) -> None:
        arrays["model.layers.1.mlp.gate_proj.weight"] *= 0
        arrays["model.layers.1.mlp.up_proj.weight"] *= 1e6
        arrays["model.layers.0.self_attn.k_proj.weight"] *= 0
        arrays["model.layers.0.self_attn.k_proj.bias"][:] = 7e4
        arrays["model.layers.0.self_attn.q_proj.bias"][:] = 0

    first, second = make_model(amplify).hidden_states(WINDOWS).maxima
    assert (second.gate, second.mlp_product) == (0, 0)
    assert second.up > 65504
    assert first.key == first.key_projection == pytest.approx(7e4)
    assert first.query == first.query_projection
    assert set(first.to_dict()) >= {"gate_amax", "up_amax", "query_projection_amax"}


def test_maxima_see_what_norms_make() -> None:
    """The output of every norm, with its weight, is found."""

    def amplify(arrays: dict[str, Any]) -> None:
        arrays["model.layers.0.input_layernorm.weight"][:] = 1e5
        arrays["model.layers.1.post_attention_layernorm.weight"][:] = 1e-6
        arrays["model.norm.weight"][:] = -3.0

    states = make_model(amplify).hidden_states(WINDOWS)
    first, second = states.maxima
    assert first.input_norm_weight == 1e5
    assert 1e5 < first.input_norm < 1e5 * 64**0.5  # of 64 values whose mean square is 1
    assert second.post_attention_norm_weight == np.float32(1e-6)
    assert 1e-6 < second.post_attention_norm < 1e-6 * 64**0.5
    assert 1 < second.input_norm < 20
    assert states.final_norm.weight == 3
    assert states.final_norm.output == max(np.abs(window).max() for window in states.windows)


def test_maxima_tell_attended_scores_from_others() -> None:
    """What no query's largest score reaches is not attended, however large its negative is."""

    def oppose(arrays: dict[str, Any]) -> None:
        for kind, value in (("q", 50.0), ("k", -50.0)):
            name = f"model.layers.0.self_attn.{kind}_proj"
            arrays[f"{name}.weight"] *= 0
            # The last pair of dimensions hardly turns: every score is near -50 * 50 / sqrt(16).
            bias = arrays[f"{name}.bias"].reshape(-1, 16)
            bias[:] = 0
            bias[:, 15] = value

    opposed, other = make_model(oppose).hidden_states(WINDOWS).maxima
    assert opposed.attended_score == pytest.approx(625, rel=1e-3)
    assert 0 < other.attended_score <= other.attention_score
    assert other.attended_score < 100


@pytest.mark.parametrize("factor", [1e20, 3e38])
def test_overflow_of_float32_is_an_error(factor: float) -> None:
    """Activations beyond float32 end in one error that names the layer, without a warning."""

    def amplify(arrays: dict[str, Any]) -> None:
        arrays["model.layers.1.mlp.up_proj.weight"] *= factor

    with pytest.raises(CheckpointError, match="activations of layer 1 overflow float32"):
        make_model(amplify).hidden_states(WINDOWS)


def test_a_nan_weight_is_named() -> None:
    """A NaN in a weight ends in an error that names the tensor, before any number comes out."""

    def damage(arrays: dict[str, Any]) -> None:
        arrays["model.layers.1.mlp.down_proj.weight"][5, 3] = np.nan

    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        make_model(damage).logits(WINDOWS)


def test_every_layer_reports_progress() -> None:
    """Progress advances once a layer, by the bytes the layer's linears take."""
    steps: list[tuple[int, str]] = []

    class Recorder:
        def start(self, stage: str, total: int, unit: str = "bytes") -> None:
            raise AssertionError((stage, total, unit))

        def advance(self, done: int, item: str = "") -> None:
            steps.append((done, item))

        def finish(self, summary: str = "") -> None:
            raise AssertionError(summary)

    model().hidden_states(WINDOWS, progress=Recorder())
    linears = [v.nbytes for name, v in ARRAYS.items() if "layers.0" in name and "proj" in name]
    assert steps == [(sum(linears), "layer 0"), (sum(linears), "layer 1")]
