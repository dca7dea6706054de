"""Sampling: the right distribution, the right candidates, the same draws for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.engine.sampler import Sampler, SamplingParams, largest, nucleus
from edgekit.errors import EngineError

DRAWS = 4000


def _logits(probabilities: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)


def _draw(params: SamplingParams, logits: np.ndarray) -> list[int]:
    sampler = Sampler(params)
    return [sampler.sample(logits, step) for step in range(DRAWS)]


def _chi_square(draws: list[int], expected: np.ndarray) -> float:
    counts = np.bincount(draws, minlength=len(expected))
    assert counts[expected == 0].sum() == 0, "a forbidden token was drawn"
    kept = expected > 0
    return float((((counts - DRAWS * expected) ** 2)[kept] / (DRAWS * expected[kept])).sum())


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=1.0, seed=1), [0.4, 0.3, 0.15, 0.1, 0.05, 0.0]),
        (SamplingParams(temperature=1.0, top_k=3, seed=2), [0.4, 0.3, 0.15, 0, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.75, seed=3), [0.4, 0.3, 0.15, 0, 0, 0]),
        # top-p is taken of what top-k left: 0.4 and 0.3 of 0.85 are 0.82.
        (SamplingParams(temperature=1.0, top_k=3, top_p=0.8, seed=4), [0.4, 0.3, 0, 0, 0, 0]),
        (SamplingParams(temperature=1.0, min_p=0.3, seed=7), [0.4, 0.3, 0.15, 0, 0, 0]),
        (SamplingParams(temperature=1.0, top_k=2, min_p=0.3, seed=8), [0.4, 0.3, 0, 0, 0, 0]),
        (SamplingParams(temperature=0.5, seed=5), [0.16, 0.09, 0.0225, 0.01, 0.0025, 0]),
        (
            SamplingParams(temperature=2.0, seed=6),
            [0.4**0.5, 0.3**0.5, 0.15**0.5, 0.1**0.5, 0.05**0.5, 0],
        ),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams, expected: list[float]) -> None:
    """Chi-square of 4000 draws against the exact probabilities stays below its 99.9 % point."""
    exact = np.array(expected) / sum(expected)
    draws = _draw(params, _logits([0.4, 0.3, 0.15, 0.1, 0.05, 0.0]))
    assert _chi_square(draws, exact) < 20.5  # 5 degrees of freedom; fewer have a lower point


def test_temperature_zero_is_greedy() -> None:
    """The most likely token, the first of equals, whatever else is set."""
    logits = np.array([1, 3, 3, 2], dtype=np.float32)
    params = SamplingParams(temperature=0, top_p=0.1, top_k=3)
    assert [Sampler(params).sample(logits, step) for step in range(5)] == [1] * 5
    assert Sampler(SamplingParams(temperature=5, top_k=1)).sample(logits, 0) == 1


@pytest.mark.parametrize("temperature", [1e-50, 1e-40, 1e-30, 1e-6, 1e30])
def test_extreme_temperatures_are_stable(temperature: float) -> None:
    """Next to zero is greedy, next to infinity is uniform; neither warns nor overflows."""
    logits = np.array([-1e30, 80, 81, 79], dtype=np.float32)
    draws = set(_draw(SamplingParams(temperature=temperature, seed=0), logits))
    assert draws == ({2} if temperature < 1 else {0, 1, 2, 3})


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, 1), (0.5, 1), (0.5000001, 2), (0.75, 2), (0.76, 3), (0.875, 3), (0.9999999, 4)],
)
def test_nucleus_is_the_smallest_that_reaches_top_p(top_p: float, kept: int) -> None:
    """The token that reaches top_p is in, the next is out; at least one is always in."""
    weights = np.array([0.25, 0.5, 0.125, 0.125], dtype=np.float32)
    assert nucleus(weights, top_p).tolist() == sorted([1, 0, 2, 3][:kept])


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=60).filter(any),
    st.floats(0.01, 0.99),
    st.integers(1, 70),
)
def test_candidates_match_a_plain_sort(values: list[int], top_p: float, top_k: int) -> None:
    """Partition and bins never change what a full stable sort would keep."""
    weights = np.array(values, dtype=np.float32)
    order = np.argsort(-weights, kind="stable")
    assert largest(weights, top_k).tolist() == sorted(order[:top_k].tolist())
    cumulative = np.cumsum(weights[order], dtype=np.float64)
    size = int(np.argmax(cumulative >= top_p * cumulative[-1])) + 1
    assert nucleus(weights, top_p).tolist() == sorted(order[:size].tolist())


@given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_nucleus_of_uneven_weights_matches_a_plain_sort(logs: list[float], top_p: float) -> None:
    """Weights of any size within a bin are ordered by value, to the token, but for rounding."""
    weights = np.exp(np.array([0.0, *logs], dtype=np.float32))
    kept = nucleus(weights, top_p)
    wanted = top_p * weights.sum(dtype=np.float64)
    held = weights[kept].sum(dtype=np.float64)
    assert held >= wanted * (1 - 1e-12)
    assert held - weights[kept].min() <= wanted * (1 + 1e-12)
    assert weights[kept].min() >= np.delete(weights, kept).max(initial=0)


def test_a_wide_nucleus_is_complete() -> None:
    """A flat distribution over a real vocabulary keeps its share."""
    weights = np.ones(150_000, dtype=np.float32)
    assert nucleus(weights, 0.9).tolist() == list(range(135_000))


def test_a_draw_depends_on_seed_and_step_only() -> None:
    """Steps can be drawn in any order, by any sampler, and repeat; seeds differ."""
    logits = np.zeros(1000, dtype=np.float32)
    params = SamplingParams(temperature=1.0, seed=42)
    first = [Sampler(params).sample(logits, step) for step in range(20)]
    again = Sampler(params)
    assert [again.sample(logits, step) for step in reversed(range(20))] == first[::-1]
    assert len(set(first)) > 15
    other = Sampler(SamplingParams(temperature=1.0, seed=43))
    assert [other.sample(logits, step) for step in range(20)] != first


@given(st.integers(0, (1 << 64) - 1), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=5))
def test_a_draw_is_that_of_numpys_generator(seed: int, steps: list[int]) -> None:
    """In whatever order: a generator made for the seed and the step gives the same number."""
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
    for step in steps:
        counter = np.array([0, 0, 0, step], dtype=np.uint64)
        key = np.array([seed, 0], dtype=np.uint64)
        own = np.random.Generator(np.random.Philox(key=key, counter=counter))
        assert sampler._uniform(step) == own.random()


def test_an_unset_seed_is_random_and_told() -> None:
    """Without a seed two samplers differ, and each says how to repeat it."""
    one, two = Sampler(SamplingParams()), Sampler(SamplingParams())
    assert one.seed != two.seed
    logits = np.zeros(1 << 16, dtype=np.float32)
    free = Sampler(SamplingParams(temperature=1.0))
    fixed = Sampler(SamplingParams(temperature=1.0, seed=free.seed))
    assert free.sample(logits, 3) == fixed.sample(logits, 3)


def test_forbidden_tokens_are_never_drawn() -> None:
    """A logit of -inf has no share, even where everything is kept."""
    logits = np.array([-np.inf, 0, -np.inf, 0], dtype=np.float32)
    assert set(_draw(SamplingParams(temperature=100.0, seed=9), logits)) == {1, 3}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    """NaN never becomes token 0 silently."""
    with pytest.raises(EngineError, match="finite"):
        Sampler(SamplingParams()).sample(np.array([0, bad, 1], dtype=np.float32), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 1.1),
        ("seed", -1),
        ("seed", 1 << 64),
        ("max_tokens", 0),
        ("stop", ("",)),
        ("stop", "text"),
    ],
)
def test_parameters_outside_their_range_are_named(name: str, value: object) -> None:
    """The error says which parameter, what it is and what it must be."""
    with pytest.raises(EngineError, match=f"{name} is .* It must be"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
