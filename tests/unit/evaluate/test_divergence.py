"""Divergence, agreement and perplexity against their definitions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EngineError
from edgekit.evaluate.divergence import (
    DivergenceAccumulator,
    compare_logits,
    perplexity,
)
from edgekit.evaluate.scores import score_logits
from edgekit.evaluate.workers import Workers

Array = np.ndarray


def logits(seed: int, rows: int = 6, width: int = 50, scale: float = 3.0) -> Array:
    return (np.random.default_rng(seed).standard_normal((rows, width)) * scale).astype(np.float32)


def kl_nats(ours: Array, theirs: Array) -> Array:
    return compare_logits(ours, theirs, np.full(len(ours), -1)).kl_nats


def log_softmax(values: Array) -> Array:
    wide = values.astype(np.longdouble)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 30))
def test_divergence_is_its_definition(seed: int, scale: float) -> None:
    """KL is sum p (log p - log q), at least 0, and not symmetric."""
    ours, theirs = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    p, q = log_softmax(ours), log_softmax(theirs)
    wanted = (np.exp(p) * (p - q)).sum(axis=1).astype(np.float64)
    np.testing.assert_allclose(kl_nats(ours, theirs), wanted, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 1000), shift=st.floats(-100, 100))
def test_adding_a_constant_changes_nothing(seed: int, shift: float) -> None:
    """Logits are known up to a constant, so shifted logits have divergence 0 from themselves."""
    ours = logits(seed).astype(np.float64)
    kl = kl_nats(ours, ours + shift)
    assert (kl >= 0).all()
    np.testing.assert_allclose(kl, 0, atol=1e-12)


@given(
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(1, 49), max_size=6),
    threads=st.integers(1, 2),
)
def test_strips_change_nothing(seed: int, cuts: list[int], threads: int) -> None:
    """Any cut of the vocabulary gives the whole's divergence, scores and best tokens."""
    ours, theirs = logits(seed), logits(seed + 1)
    wanted = np.array([3, 49, -1, 0, 20, 7])
    whole = compare_logits(ours, theirs, wanted)
    accumulator = DivergenceAccumulator(wanted)
    edges = sorted({0, 50, *cuts})
    with Workers(threads) as workers:
        for start, stop in pairwise(edges):
            accumulator.update(start, ours[:, start:stop], theirs[:, start:stop], workers)
    cut = accumulator.result()
    np.testing.assert_allclose(cut.kl_nats, whole.kl_nats, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(cut.top1_equal, ours.argmax(axis=1) == theirs.argmax(axis=1))
    for one, other in ((cut.reference, whole.reference), (cut.candidate, whole.candidate)):
        np.testing.assert_allclose(one.log_probability, other.log_probability, rtol=1e-12)
        np.testing.assert_array_equal(one.top_ids, other.top_ids)


def test_a_tiny_divergence_is_resolved() -> None:
    """A divergence of 1e-8 nats over a large vocabulary comes out to a thousandth of itself."""
    ours = logits(0, rows=1, width=150_000, scale=2.0).astype(np.float64)
    theirs = ours + 1e-4 * logits(1, rows=1, width=150_000, scale=1.0)
    p, q = log_softmax(ours), log_softmax(theirs)
    wanted = float((np.exp(p) * (p - q)).sum())
    assert 1e-9 < wanted < 1e-7
    assert kl_nats(ours, theirs)[0] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_damaged_logits_are_an_error(bad: float) -> None:
    """A non-finite logit of the engine is an error that says where."""
    theirs = logits(1)
    theirs[2, 5] = bad
    with np.errstate(all="ignore"), pytest.raises(EngineError, match="position 2 are not finite"):
        kl_nats(logits(0), theirs)


def test_best_tokens_are_sorted_and_ties_go_to_the_lower_id() -> None:
    """The k best tokens come best first; of equals, the lower id."""
    values = np.zeros((1, 9), np.float32)
    values[0, [7, 2]] = 5
    values[0, 4] = 9
    score = score_logits(values, np.array([-1]), top_k=3)
    assert score.top_ids.tolist() == [[4, 2, 7]]


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    """Uniform logits have perplexity V; positions without a wanted token do not count."""
    score = score_logits(np.zeros((4, 40), np.float32), np.array([1, 2, 3, -1]))
    assert perplexity(score.log_probability) == pytest.approx(40)
    assert perplexity(np.array([-5000.0])) == pytest.approx(np.exp(700.0))
