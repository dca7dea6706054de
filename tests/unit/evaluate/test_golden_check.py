"""Golden sequences: recorded once, kept by right engines, missed by wrong ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from evaluate_fakes import ReferenceSession, make_model, random_windows

from edgekit.contracts.canonical import canonical_bytes
from edgekit.errors import BundleError, ContextOverflowError, QualityError
from edgekit.evaluate import golden as golden_module
from edgekit.evaluate.divergence import compare_logits
from edgekit.evaluate.golden import GoldenLimits, check_golden
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.pipeline.quality import record_golden

MODEL = make_model()
WINDOWS = random_windows(128, [6, 11, 9])
GOLDEN = record_golden(MODEL, WINDOWS, MODEL.hidden_states(WINDOWS))
STRICT = GoldenLimits(
    kl_divergence_nats_max=1e-5,
    top1_agreement_min=1.0,
    mean_abs_difference_nats_max=1e-3,
    max_abs_difference_nats_max=1e-3,
    margin_nats=0.01,
)


def other_model() -> Any:
    def change(arrays: dict[str, Any]) -> None:
        arrays["model.layers.0.mlp.down_proj.weight"] *= 3

    return make_model(change)


@pytest.mark.parametrize("block_positions", [2, 1000])
def test_the_reference_keeps_its_own_record(
    monkeypatch: pytest.MonkeyPatch, block_positions: int
) -> None:
    """An engine that computes the reference passes tight limits, whatever it is fed at once."""
    monkeypatch.setattr(golden_module, "LOGIT_BYTES", 4 * 128 * block_positions)
    session = ReferenceSession(MODEL)
    report = check_golden(session, GOLDEN, STRICT)
    assert report.passed
    report.require("standard.float32")
    assert report.tokens == 26
    assert report.clear_positions > 20
    assert report.max_abs_difference_nats < 1e-4
    assert not session.slots


def test_another_model_fails_with_figures() -> None:
    """An engine that computes something else misses the limits, and the error says which."""
    report = check_golden(ReferenceSession(other_model()), GOLDEN, STRICT)
    assert len(report.failures) == 4
    with pytest.raises(QualityError, match=r"kl_divergence_bound_nats is .*, the limit 1e-05"):
        report.require("standard.float32")
    assert check_golden(ReferenceSession(other_model()), GOLDEN, GoldenLimits()).passed


def test_the_bound_is_below_the_divergence() -> None:
    """The divergence bound is never above the true mean divergence, and not trivial."""
    other = other_model()
    report = check_golden(ReferenceSession(other), GOLDEN, GoldenLimits())
    kl = [
        compare_logits(ours[:-1], theirs[:-1], window[1:]).kl_nats
        for ours, theirs, window in zip(
            MODEL.logits(WINDOWS), other.logits(WINDOWS), WINDOWS, strict=True
        )
    ]
    assert 0 < report.kl_divergence_bound_nats <= np.concatenate(kl).mean()


def test_near_ties_do_not_count() -> None:
    """Agreement is taken over clear positions only, and is 1 when there are none."""
    report = check_golden(ReferenceSession(other_model()), GOLDEN, GoldenLimits(margin_nats=1e9))
    assert (report.clear_positions, report.top1_agreement) == (0, 1.0)


def test_json_goes_round() -> None:
    """The canonical JSON form reads back to the same set, rounded to 1e-4 nats."""
    data = json.loads(canonical_bytes(GOLDEN.to_dict()))
    assert GoldenSet.from_dict(data) == GOLDEN
    value = data["sequences"][0]["log_probability_nats"][0]
    assert value == round(value, 4)
    first = MODEL.scores(MODEL.hidden_states(WINDOWS[:1]).windows, [np.append(WINDOWS[0][1:], -1)])
    assert value == pytest.approx(first[0].log_probability[0], abs=6e-5)


@pytest.mark.parametrize(
    ("key", "value", "cause"),
    [
        ("token_ids", [1], "at least 2"),
        ("token_ids", [1, -2], "token_ids is not a list of token ids"),
        ("top1_ids", None, "top1_ids is not"),
        ("top1_ids", [True] * 6, "top1_ids is not"),
        ("log_probability_nats", [0.0] * 6, "log_probability_nats has 6 entries, not 5"),
        ("top1_margin_nats", ["0"] * 6, "top1_margin_nats is not a list of numbers"),
    ],
)
def test_damaged_records_are_refused(key: str, value: object, cause: str) -> None:
    """A golden sequence of another form is one error that names the entry."""
    data = GOLDEN.to_dict()
    data["sequences"][0][key] = value
    with pytest.raises(BundleError, match=f"golden sequence 0.*{cause}"):
        GoldenSet.from_dict(data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"schema_version": 2},
        {"schema_version": 1, "sequences": []},
        {"schema_version": 1, "sequences": [3]},
    ],
)
def test_other_documents_are_refused(data: dict[str, Any]) -> None:
    """Another version, or no sequences, is an error."""
    with pytest.raises(BundleError):
        GoldenSet.from_dict(data)


def test_a_sequence_that_does_not_fit_is_refused() -> None:
    """A short context or a small vocabulary is an error, not a wrong figure."""
    with pytest.raises(ContextOverflowError, match="11 tokens, the context holds 8"):
        check_golden(ReferenceSession(MODEL, max_context=8), GOLDEN, GoldenLimits())
    with pytest.raises(BundleError, match="the engine has 16"):
        check_golden(ReferenceSession(make_model(vocab=16)), GOLDEN, GoldenLimits())
