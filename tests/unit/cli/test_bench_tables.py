"""A benchmark's tables, at any width."""

from __future__ import annotations

from typing import Any

import pytest

from edgekit.benchmark.percentiles import describe
from edgekit.benchmark.samples import Sample
from edgekit.cli.bench_tables import plot_title, show_report

SAMPLES = [Sample(0.0, 0.0125, 1.0125, 32, 101, None, "length")] * 2
LOADGEN = {
    "target_qps": 2.0,
    "ttft_limit_s": 2.0,
    "tpot_limit_s": 0.1,
    "result": "INVALID",
    "checks": {"min_duration": True, "early_stopping": False},
    "remarks": ["Processed 2 queries."],
    "latency_s": {"p50": 1.0, "p90": 1.5, "p99": 2.0},
    "logs": None,
}


def report() -> dict[str, Any]:
    scenarios = [
        {"scenario": "latency", "streams": 1, **describe(SAMPLES), "loadgen": None},
        {"scenario": "server", "streams": None, **describe(SAMPLES), "loadgen": LOADGEN},
        {"scenario": "load", "streams": 1, **describe(SAMPLES), "loadgen": None},
        {"scenario": "load", "streams": 8, **describe(SAMPLES[:1]), "loadgen": None},
    ]
    return {
        "target": {"url": "http://it/v1", "model": "r1", "endpoint": "chat"},
        "workload": {"prompt_tokens": 32, "max_tokens": 128},
        "scenarios": scenarios,
        "machine_is_server": False,
        "warnings": ["no submission"],
    }


@pytest.mark.parametrize("width", [50, 100])
def test_everything_is_told(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Percentiles of each scenario, LoadGen's verdict and why, a row for each load, warnings."""
    monkeypatch.setenv("COLUMNS", str(width))
    show_report(report(), "a board, 30W")
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    shown = " ".join(" ".join(lines).split())
    marks = "{0} {0} {0}" if width == 100 else "p50 {0}, p90 {0}, p99 {0}"
    assert f"time to first token, ms {marks.format('12.50')}" in shown
    assert f"time per output token, ms {marks.format('10.00')}" in shown
    assert "LoadGen INVALID: not met early stopping Processed 2 queries." in shown
    assert "held to p99 of TTFT 2000 ms, of TPOT 100 ms, 2 queries/s" in shown
    assert "its latency p50 1000.0 ms, p90 1500.0 ms, p99 2000.0 ms" in shown
    assert "asked from a board, 30W" in shown
    assert shown.count(" load ") == 1
    assert "no submission" in shown


def test_answers_of_one_token_have_no_tpot(capsys: pytest.CaptureFixture[str]) -> None:
    """A dash stands where nothing was measured."""
    one = describe([Sample(0.0, 1.0, 1.0, 32, 1, 3, "stop")])
    scenario = {"scenario": "latency", "streams": 1, **one, "loadgen": None}
    show_report({**report(), "scenarios": [scenario]}, "")
    assert "time per output token, ms - - -" in " ".join(capsys.readouterr().out.split())


def test_a_plots_title_names_model_work_and_machine() -> None:
    """And whose machine it is."""
    assert plot_title(report(), "a board") == (
        "r1: 32 tokens in, up to 128 out\nasked from: a board"
    )
