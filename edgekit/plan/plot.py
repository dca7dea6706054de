"""The roofline of machines with a model on it, as PNG or as HTML with the drawing inside.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.drawing import figure_bytes, new_figure, require_format
from edgekit.plan.planner import PROJECTION, Plan

INTENSITIES = (0.5, 20000.0)
"""Range of the axis, flop a byte."""
MARKERS = {1: "o", 2: "s", 4: "^", 8: "D"}


def draw_roofline(plans: Sequence[Plan], path: Path) -> bytes:
    """Return the roofline of every plan's machine, its decode steps and its prompts on it.

    Args:
        plans: Of one model.
        path: File it is for: its suffix says the format.

    Raises:
        EdgekitError: The file's suffix is neither ``.png`` nor ``.html``.
        MissingExtraError: There is no matplotlib.
    """
    require_format(path)
    title = f"edgekit plan: {plans[0].subject.name}"
    return figure_bytes(_figure(plans), path, title, PROJECTION)


def _figure(plans: Sequence[Plan]) -> Any:
    figure = new_figure(9, 5.5)
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
        parse_math=False,  # a dollar sign of a folder's name is no formula
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
