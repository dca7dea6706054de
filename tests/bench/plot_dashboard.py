"""Draws what a shipped dashboard shows, from a real Prometheus: Grafana's graphs, not its looks.

Usage: PYTHONPATH=.:tests python tests/bench/plot_dashboard.py device docs/images/fleet-device.png
The fleet is that of the dashboards' tests (``tests/dashboard_cases.py``).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl

mpl.use("Agg")
from dashboard_cases import HOURS, watched_fleet
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from prometheus_server import Prometheus

DASHBOARDS = Path(__file__).parents[2] / "ota/grafana/dashboards"
VARIABLES = {"$tenant": "acme", "$device": "orin-1", "$__rate_interval": "4m"}
COLUMNS = 3
_PERCENT = "percentunit"


def series(server: Prometheus, expression: str) -> list[dict[str, Any]]:
    """Return what a graph draws of the hours that there are."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    now_s = time.time()
    window = {"start": now_s - HOURS * 3600, "end": now_s, "step": 30}
    answer = httpx.get(
        f"{server.url}/api/v1/query_range", params={"query": expression, **window}, timeout=30
    )
    found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]
    return found


def draw(panel: dict[str, Any], server: Prometheus, axes: Axes) -> None:
    """Draw one panel: its lines, and its thresholds."""
    defaults = panel["fieldConfig"]["defaults"]
    scale = 100 if defaults["unit"] == _PERCENT else 1
    for target in panel["targets"]:
        for one in series(server, target["expr"]):
            legend = target["legendFormat"]
            for label, value in one["metric"].items():
                legend = legend.replace(f"{{{{{label}}}}}", value)
            hours_ago = [(at - time.time()) / 3600 for at, _ in one["values"]]
            axes.plot(hours_ago, [scale * float(v) for _, v in one["values"]], lw=0.9, label=legend)
    top = axes.get_ylim()[1]
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and scale * step["value"] < 1.5 * max(top, 1e-9):
            axes.axhline(scale * step["value"], color=step["color"], lw=0.8, ls="--")
    unit = "%" if scale == 100 else defaults["unit"]
    axes.set_title(f"{panel['title']} [{unit}]", fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel("hours", fontsize=7)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, ncols=3, loc="best", framealpha=0.6)


def main() -> None:
    """Draw a dashboard's graphs into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "dashboard", choices=sorted(path.stem for path in DASHBOARDS.glob("*.json"))
    )
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    dashboard = json.loads((DASHBOARDS / f"{arguments.dashboard}.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] == "timeseries"]
    rows = -(-len(panels) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(15, 2.6 * rows), layout="constrained")
    with tempfile.TemporaryDirectory() as folder, watched_fleet(Path(folder)) as server:
        for panel, axes in zip(panels, grid.flat, strict=False):
            draw(panel, server, axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(dashboard["title"], fontsize=12)
    figure.savefig(arguments.out, dpi=70)
    Image.open(arguments.out).quantize(48).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
