"""Text quality: windows, bounded memory, and figures that mean what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evaluate_fakes import ReferenceSession, make_model

from edgekit.errors import CalibrationError, ContextOverflowError, EngineError
from edgekit.evaluate import text_quality
from edgekit.evaluate.divergence import compare_logits, perplexity
from edgekit.evaluate.reference import ReferenceModel
from edgekit.evaluate.text_quality import (
    TextQuality,
    TextSample,
    compare_states,
    measure_session,
    split_windows,
    summarize,
)

TOKENS = np.random.default_rng(5).integers(0, 128, 40)


def make_sample(reference: ReferenceModel | None) -> TextSample:
    windows = split_windows(TOKENS, window=16)
    states = reference.hidden_states(windows) if reference else None
    return TextSample(windows, reference, states)


def measure(session: ReferenceSession, reference: ReferenceModel | None) -> TextQuality:
    return measure_session(session, make_sample(reference))


def changed(arrays: dict[str, Any]) -> None:
    arrays["model.layers.0.mlp.down_proj.weight"] *= 1.5


def test_windows_cover_the_limit() -> None:
    """Windows are consecutive, end at the limit, and a lone last token is dropped."""
    windows = split_windows(TOKENS, window=8, limit=33)
    assert [len(window) for window in windows] == [8, 8, 8, 8]
    np.testing.assert_array_equal(np.concatenate(windows), TOKENS[:32])
    assert [len(window) for window in split_windows(TOKENS, 8, 35)] == [8, 8, 8, 8, 3]
    with pytest.raises(CalibrationError, match="1 tokens, at least 2"):
        split_windows([4])


def test_the_reference_has_no_divergence_from_itself() -> None:
    """An engine that computes the reference has divergence 0 and agrees everywhere."""
    model = make_model()
    quality = measure(ReferenceSession(model), model)
    assert quality.kl_divergence_nats == pytest.approx(0, abs=1e-9)
    assert quality.top1_agreement == 1.0
    assert quality.perplexity == pytest.approx(quality.reference_perplexity)
    assert quality.tokens == 40


@pytest.mark.parametrize("block_positions", [3, 1000])
def test_figures_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, block_positions: int
) -> None:
    """Streaming over positions and vocabulary gives the figures of whole logits."""
    monkeypatch.setattr(text_quality, "LOGIT_BYTES", 4 * 128 * block_positions)
    model = make_model(options={"strip_bytes": 4 * 64 * 50})
    other = make_model(changed, options={"strip_bytes": 4 * 64 * 33})
    sample = make_sample(model)
    parts = [
        compare_logits(ours, theirs, np.append(window[1:], -1))
        for ours, theirs, window in zip(
            model.logits(sample.windows), other.logits(sample.windows), sample.windows, strict=True
        )
    ]
    session = ReferenceSession(other)
    states = other.hidden_states(sample.windows)
    whole = summarize(compare_states(other, states, sample))
    for quality in (measure_session(session, sample), whole):
        kl = np.concatenate([part.kl_nats for part in parts])
        assert quality.kl_divergence_nats == pytest.approx(kl.mean(), rel=1e-3)
        assert quality.kl_divergence_max_nats == pytest.approx(kl.max(), rel=1e-3)
        equal = np.concatenate([part.top1_equal for part in parts]).mean()
        assert quality.top1_agreement == pytest.approx(equal)
        likely = np.concatenate([part.candidate.log_probability for part in parts])
        assert quality.perplexity == pytest.approx(perplexity(likely), rel=1e-4)
    assert session.longest_prefill == min(block_positions, 16)
    assert not session.slots  # released


def test_perplexity_needs_no_reference() -> None:
    """Without a reference only perplexity is measured, and the JSON says nothing else."""
    model = make_model()
    quality = measure(ReferenceSession(model), None)
    both = measure(ReferenceSession(model), model)
    assert quality.to_dict() == {"tokens": 40, "perplexity": pytest.approx(both.perplexity)}
    assert set(both.to_dict()) == {
        "tokens",
        "perplexity",
        "reference_perplexity",
        "kl_divergence_nats",
        "kl_divergence_max_nats",
        "top1_agreement",
    }


def test_a_window_beyond_the_context_is_refused() -> None:
    """A window that does not fit is an error before anything runs."""
    session = ReferenceSession(make_model(), max_context=8)
    with pytest.raises(ContextOverflowError, match="window of 16 tokens exceeds the context of 8"):
        measure(session, None)


def test_another_models_vocabulary_is_refused() -> None:
    """A reference of another vocabulary cannot be compared."""
    with pytest.raises(EngineError, match="128 logits, the reference 160"):
        measure(ReferenceSession(make_model()), make_model(vocab=160))
