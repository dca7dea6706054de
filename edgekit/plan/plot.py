"""The roofline of machines with a model on it, as PNG or as HTML with the drawing inside.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, MissingExtraError, StorageError
from edgekit.plan.planner import PROJECTION, Plan

SUFFIXES = (".png", ".html")
INTENSITIES = (0.5, 20000.0)
"""Range of the axis, flop a byte."""
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D"}


def draw_roofline(plans: Sequence[Plan], path: Path) -> None:
    """Write the roofline of every plan's machine, its decode steps and its prompts on it.

    Raises:
        EdgekitError: The file's suffix is neither ``.png`` nor ``.html``.
        MissingExtraError: There is no matplotlib.
        StorageError: The file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise EdgekitError(
            f"--plot {path}: {path.suffix or 'no suffix'} is no format of a plot",
            f"Use {' or '.join(SUFFIXES)}",
        )
    figure = _figure(plans)
    data = io.BytesIO()
    try:
        if path.suffix.lower() == ".png":
            figure.savefig(data, format="png", dpi=150)
            path.write_bytes(data.getvalue())
        else:
            figure.savefig(data, format="svg", metadata={"Date": None})
            path.write_text(_page(plans, data.getvalue().decode()), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _figure(plans: Sequence[Plan]) -> Any:
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("--plot", "plot") from error
    mpl.rcParams["svg.hashsalt"] = "edgekit"  # the same plan, the same file
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for index, plan in enumerate(plans):
        _draw(axes, plan, f"C{index}")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=INTENSITIES,
        xlabel="arithmetic intensity (flop per byte of memory traffic)",
        ylabel="flop/s",
    )
    first = plans[0]
    axes.set_title(
        f"{first.subject.name}, {first.subject.recipe}, as {first.engine.name}: a projection",
        fontsize="medium",
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    _legend(axes, plans)
    return figure


def _draw(axes: Any, plan: Plan, colour: str) -> None:
    """Draw a machine's roof, what the engine reaches of it, and the model's points."""
    machine, engine, work = plan.machine, plan.engine, plan.work
    x = np.geomspace(*INTENSITIES, 200)
    roof = np.minimum(x * machine.bandwidth_bytes_per_s, machine.fp16_flops_per_s)
    axes.plot(x, roof, color=colour, linewidth=1.5, label=machine.title)
    reached = x * engine.bandwidth(machine)
    if engine.compute_efficiency:
        reached = np.minimum(reached, engine.compute_efficiency * machine.fp16_flops_per_s)
    axes.plot(x, reached, color=colour, linewidth=1, linestyle="--")
    for rate in plan.rates:
        flops = work.decode_flops(rate.batch, rate.context)
        intensity = flops / work.decode_bytes(rate.batch, rate.context)
        marker = MARKERS.get(rate.batch, "x")
        axes.plot(intensity, flops / rate.decode_step_s, marker, color=colour, markersize=5)
        if rate.batch == 1 and rate.prefill_tokens_per_s:
            flops = work.prefill_flops(rate.context)
            moved = work.weight_bytes + rate.context * work.cache_bytes_per_token
            seconds = rate.context / rate.prefill_tokens_per_s
            axes.plot(
                flops / moved, flops / seconds, "P", color=colour, markersize=7, fillstyle="none"
            )


def _legend(axes: Any, plans: Sequence[Plan]) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra

    batches = dict.fromkeys(rate.batch for plan in plans for rate in plan.rates)
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color="grey", linestyle="--", linewidth=1))
    labels.append("what the engine reaches")
    for batch in batches:
        handles.append(Line2D([], [], color="grey", marker=MARKERS.get(batch, "x"), linestyle=""))
        labels.append(f"decode, batch {batch}")
    if any(rate.prefill_tokens_per_s for plan in plans for rate in plan.rates):
        handles.append(Line2D([], [], color="grey", marker="P", fillstyle="none", linestyle=""))
        labels.append("prefill")
    axes.legend(handles, labels, fontsize="small", loc="lower right")


def _page(plans: Sequence[Plan], svg: str) -> str:
    """Return a page that needs no other file."""
    title = html.escape(f"edgekit plan: {plans[0].subject.name}")
    drawing = svg[svg.index("<svg") :]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title></head>"
        f"<body><h1>{title}</h1>\n{drawing}\n<p>{html.escape(PROJECTION)}</p></body></html>\n"
    )
