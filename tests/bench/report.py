"""What every benchmark ends with: medians, a table, and a JSON file that says where it ran."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgekit.power import read_machine


def add_calm_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a benchmark wait for a quiet machine."""
    parser.add_argument(
        "--calm",
        type=float,
        default=0.0,
        metavar="CORES",
        help="before each run, wait until the machine uses fewer processors than this",
    )
    parser.add_argument("--calm-timeout-s", type=float, default=600.0)


def median(values: Sequence[float]) -> float:
    """Return the median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge the figures: processor, cores, load, power, time.

    Prints a warning where a Jetson's power mode or clocks hold the figures down.
    """
    power = read_machine()
    for warning in power.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "power": power.to_dict(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column left, the others right aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` with sorted keys and a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    print(f"written: {path}")
