"""Reads ``mlperf_log_summary.txt``, as LoadGen 6.0 writes it.

Source: loadgen/results.cc of github.com/mlcommons/inference.
"""

from __future__ import annotations

import re
from typing import Any

from edgekit.errors import EngineError

_PERCENTILE = re.compile(r"^([\d.]+) percentile (.+?) \(ns\)\s*: (\d+)$", re.MULTILINE)
_KINDS = {
    "latency": "latency_s",
    "first token latency": "ttft_s",
    "time to output token": "tpot_s",
}
_CHECKS = {
    "Performance constraints": "performance_constraints",
    "Min duration": "min_duration",
    "Min queries": "min_queries",
    "Early stopping": "early_stopping",
}
_RATES = {
    "samples_per_s": r"^(?:Completed s|S)amples per second\s*: (\S+)$",
    "tokens_per_s": r"^(?:(?:Completed t|T)okens per second|TPS w/ loadgen overhead)\s*: (\S+)$",
    "queries_per_s": r"^QPS w/ loadgen overhead\s*: (\S+)$",
}
_SECTION = "\n================================================\nAdditional Stats"


def parse_summary(text: str) -> dict[str, Any]:
    """Return what LoadGen found: its verdict, why, its percentiles and rates.

    Args:
        text: The summary's.

    Raises:
        EngineError: There is no verdict in it.
    """
    verdict = re.search(r"^Result is : (VALID|INVALID)$", text, re.MULTILINE)
    if verdict is None:
        raise EngineError(
            "LoadGen's summary has no verdict", "Look into its detailed log: --logs keeps it"
        )
    head = text.partition(_SECTION)[0]
    found: dict[str, Any] = {
        "result": verdict[1],
        "checks": {
            name: answer == "Yes"
            for said, name in _CHECKS.items()
            for answer in re.findall(rf"^\s+{said} satisfied\s*: (\S+)$", head, re.MULTILINE)
        },
        "remarks": _remarks(head),
    }
    for name, pattern in _RATES.items():
        rate = re.search(pattern, text, re.MULTILINE)
        found[name] = None if rate is None else float(rate[1])
    for kind, key in _KINDS.items():
        marks = {
            f"p{float(mark):g}": int(value) / 1e9
            for mark, of, value in _PERCENTILE.findall(text)
            if of == kind
        }
        found[key] = marks or None
    return found


def _remarks(head: str) -> list[str]:
    """Return the recommendations and the results of early stopping, a line each."""
    remarks: list[str] = []
    for line in head.splitlines():
        if line.startswith(" * "):
            remarks.append(line.removeprefix(" * ").strip())
        elif line.startswith(" ") and remarks:  # a remark goes on
            remarks[-1] += f" {line.strip()}"
    return remarks
