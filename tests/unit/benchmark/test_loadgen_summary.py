"""LoadGen's summary, as its own 6.0.17 wrote it."""

from __future__ import annotations

import pytest

from edgekit.benchmark.loadgen import NAMES, Limits, library_size, settings
from edgekit.benchmark.loadgen_summary import parse_summary
from edgekit.benchmark.samples import Sample
from edgekit.errors import EngineError

RULE = "================================================\n"
SERVER = f"""{RULE}MLPerf Results Summary
{RULE}SUT name : PySUT
Scenario : Server
Mode     : PerformanceOnly
Completed samples per second    : 46.20
Completed tokens per second: 534.99
Result is : INVALID
  Performance constraints satisfied : Yes
  Min duration satisfied : NO
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Increase the target QPS so the loadgen pre-generates more queries.
TTFT Early Stopping Result:

TPOT Early Stopping Result:
 * Run unsuccessful.
 * Processed 20 queries.
 * Would need to run at least 439 more queries,
 with the run being successful if every additional
 query were under latency.

{RULE}Additional Stats
{RULE}Scheduled samples per second : 49.27
50.00 percentile latency (ns)   : 25771849
99.90 percentile latency (ns)   : 25966586

Completed tokens per second                 : 534.99
50.00 percentile first token latency (ns)   : 5566024
50.00 percentile time to output token (ns)   : 2019170

{RULE}Test Parameters Used
{RULE}samples_per_query : 1
"""
SINGLE = f"""{RULE}MLPerf Results Summary
{RULE}Scenario : SingleStream
90.0th percentile latency (ns) : 26022425
90.0th first token percentile latency (ns) : 5753922
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Recommendations:

{RULE}Additional Stats
{RULE}QPS w/ loadgen overhead         : 38.60
QPS w/o loadgen overhead        : 38.71
90.00 percentile latency (ns)   : 26022425
TPS w/ loadgen overhead         : 435.51
TPS w/o loadgen overhead        : 425.79
"""


def test_why_a_run_is_invalid_is_told() -> None:
    """Verdict, each check, the remarks on one line each, percentiles in seconds."""
    found = parse_summary(SERVER)
    assert found["result"] == "INVALID"
    assert found["checks"] == {
        "performance_constraints": True,
        "min_duration": False,
        "min_queries": True,
        "early_stopping": False,
    }
    assert found["remarks"] == [
        "Increase the target QPS so the loadgen pre-generates more queries.",
        "Run unsuccessful.",
        "Processed 20 queries.",
        "Would need to run at least 439 more queries, with the run being successful if every "
        "additional query were under latency.",
    ]
    assert found["latency_s"] == {"p50": 0.025771849, "p99.9": 0.025966586}
    assert found["ttft_s"] == {"p50": 0.005566024}
    assert found["tpot_s"] == {"p50": 0.00201917}
    assert (found["samples_per_s"], found["tokens_per_s"]) == (46.2, 534.99)
    assert found["queries_per_s"] is None


def test_a_valid_run_of_one_stream() -> None:
    """It has rates of its own, and no constraint on performance."""
    found = parse_summary(SINGLE)
    assert (found["result"], found["remarks"], found["ttft_s"]) == ("VALID", [], None)
    assert "performance_constraints" not in found["checks"]
    assert (found["queries_per_s"], found["tokens_per_s"]) == (38.6, 435.51)


def test_a_summary_without_a_verdict() -> None:
    """A test that ended early left none."""
    with pytest.raises(EngineError, match="has no verdict"):
        parse_summary("")


def limits(duration_s: float = 60.0, queries: int = 0) -> Limits:
    return Limits(duration_s, queries, target_qps=2.0, ttft_s=2.0, tpot_s=0.1, at_once=4)


WARM = [Sample(0.0, 0.1, 0.5, 32, 9, None, "stop"), Sample(0.0, 0.1, 1.0, 32, 9, None, "stop")]


def test_there_are_prompts_enough_that_none_comes_twice() -> None:
    """Twice what the fastest request would need, or what random arrivals come to, or --queries."""
    assert library_size("single-stream", limits(), WARM) == 2 * 60 * 2
    assert library_size("offline", limits(), WARM) == 1.5 * 60 * 2
    assert 120 + 40 < library_size("server", limits(), WARM) < 120 + 50
    for scenario in NAMES:
        few = library_size(scenario, limits(duration_s=0, queries=7), WARM)
        assert few == 7


def test_what_loadgen_is_told() -> None:
    """Token latencies, each prompt once, the limits in nanoseconds; whether it is shortened."""
    found = settings("server", limits())
    assert (found["ttft_latency"], found["tpot_latency"]) == (2_000_000_000, 100_000_000)
    assert (found["server_target_qps"], found["min_duration_ms"]) == (2.0, 60_000)
    assert found["use_token_latencies"]
    assert found["performance_issue_unique"]
    assert "server_target_qps" not in settings("offline", limits())
    assert limits().is_shortened
    assert not limits(duration_s=600.0).is_shortened
