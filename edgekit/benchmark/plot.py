"""Draws a benchmark: distributions of TTFT and TPOT, and throughput over streams.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.benchmark.percentiles import PERCENTILES, describe
from edgekit.benchmark.scenarios import Measured
from edgekit.drawing import figure_bytes, new_figure, require_format

PANEL_INCHES = (4.6, 4.2)
LOG_RATIO = 20.0
"""A panel whose values differ by more has a logarithmic axis."""


def draw_benchmark(
    measured: Sequence[Measured], path: Path, title: str, notes: Sequence[str]
) -> bytes:
    """Return a drawing of what was measured.

    Args:
        measured: One at least.
        path: File it is for: its suffix says the format.
        title: Above it.
        notes: Below it.

    Raises:
        EdgekitError: The file's suffix is neither ``.png`` nor ``.html``.
        MissingExtraError: There is no matplotlib.
    """
    require_format(path)
    load = [one for one in measured if one.scenario == "load"]
    panels = 3 if len(load) > 1 else 2
    figure = new_figure(panels * PANEL_INCHES[0], PANEL_INCHES[1])
    axes = figure.subplots(1, panels)
    _distributions(axes[0], measured, "ttft_s", "time to first token (ms)")
    _distributions(axes[1], measured, "tpot_s", "time per output token (ms)")
    if panels == 3:
        _throughput(axes[2], load)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    # A dollar sign of a model's name is no formula.
    figure.suptitle(title, fontsize="medium", parse_math=False)
    return figure_bytes(figure, path, f"edgekit bench: {title}", ". ".join(notes))


def _distributions(axes: Any, measured: Sequence[Measured], name: str, label: str) -> None:
    """Draw the share of requests below each time, a line for each scenario."""
    everything: list[float] = []
    for index, one in enumerate(measured):
        values = [getattr(sample, name) for sample in one.samples]
        times = np.sort([1000 * value for value in values if value is not None])
        if not times.size:
            continue
        everything += [float(times[0]), float(times[-1])]
        share = 100 * np.arange(1, len(times) + 1) / len(times)
        colour = f"C{index}"
        axes.step(times, share, where="post", color=colour, linewidth=1.5, label=one.title)
        marks = np.percentile(times, PERCENTILES)
        axes.plot(marks, PERCENTILES, "o", color=colour, markersize=4)
    if everything and max(everything) > LOG_RATIO * min(everything):
        _logarithmic(axes)
    elif everything:
        axes.set_xlim(left=0)
    axes.set(xlabel=label, ylabel="requests (%)", ylim=(0, 102), yticks=(0, *PERCENTILES))
    axes.grid(visible=True, which="major", alpha=0.3)


def _logarithmic(axes: Any) -> None:
    """Let an axis have factors for steps, each named by its number."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _rate(rate: float) -> str:
    """Return three digits that count, or all of the whole ones."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _throughput(axes: Any, load: Sequence[Measured]) -> None:
    """Draw output tokens a second over the number of streams."""
    streams = [one.streams or 0 for one in load]
    rates = [describe(one.samples)["output_tokens_per_s"] for one in load]
    axes.plot(streams, rates, "o-", color="black", linewidth=1.5)
    for x, rate in zip(streams, rates, strict=True):
        axes.annotate(_rate(rate), (x, rate), (0, 6), textcoords="offset points", ha="center")
    axes.set(xlabel="streams", ylabel="output tokens/s", ylim=(0, 1.15 * max(rates)))
    axes.set_xticks(streams)
    axes.margins(x=0.15)
    axes.grid(visible=True, which="major", alpha=0.3)
