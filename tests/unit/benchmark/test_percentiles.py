"""Percentiles and what is told of requests measured together."""

from __future__ import annotations

import pytest

from edgekit.benchmark.percentiles import describe, summarize
from edgekit.benchmark.samples import Sample


def test_percentiles_of_times_and_of_rates() -> None:
    """Times' are of the slow end, and so are rates': nine in ten are at least that fast."""
    values = [float(value) for value in range(101)]
    times, rates = summarize(values), summarize(values, is_rate=True)
    assert times is not None
    assert rates is not None
    assert [times[mark] for mark in ("p50", "p90", "p99")] == [50, 90, 99]
    assert [rates[mark] for mark in ("p50", "p90", "p99")] == [50, 10, 1]
    assert (times["count"], times["mean"], times["min"], times["max"]) == (101, 50, 0, 100)
    between = summarize([1.0, 2.0])
    assert between is not None
    assert between["p90"] == pytest.approx(1.9)
    assert summarize([]) is None


def test_throughput_is_of_the_whole_time() -> None:
    """Tokens of streams that overlap, by the time from the first's begin to the last's end."""
    samples = [
        Sample(10.0, 0.5, 2.0, 32, 10, None, "stop"),
        Sample(11.0, 1.5, 3.0, 30, 30, 4, "length"),
        Sample(11.0, 1.0, 1.0, 31, 1, 2, "stop"),
    ]
    found = describe(samples)
    assert found["wall_s"] == 4.0
    assert found["output_tokens_per_s"] == pytest.approx(41 / 4)
    assert found["requests_per_s"] == pytest.approx(3 / 4)
    assert found["prompt_tokens"] == {"min": 30, "max": 32, "mean": 31}
    assert found["cached_tokens"] == 6
    assert found["finish_reasons"] == {"stop": 2, "length": 1}
    assert found["tpot_s"]["count"] == 2  # an answer of one token has none
    assert describe(samples[:1])["cached_tokens"] is None
