"""A benchmark's report as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from edgekit.cli.render import console, facts_table, grid_table

MARKS = ("p50", "p90", "p99")
_TIMES = (
    ("time to first token, ms", "ttft_s"),
    ("time per output token, ms", "tpot_s"),
    ("end to end, ms", "e2e_s"),
)


def plot_title(report: dict[str, Any], machine: str) -> str:
    """Return what was asked of whom, and on which machine.

    Args:
        report: Of ``edgekit.benchmark.scenarios``.
        machine: Its state in one line.
    """
    work, where = report["workload"], "on" if report["machine_is_server"] else "asked from"
    asked = f"{work['prompt_tokens']} tokens in, up to {work['max_tokens']} out"
    return f"{report['target']['model']}: {asked}\n{where}: {machine}"


def show_report(report: dict[str, Any], machine: str) -> None:
    """Print what was asked, a table for each scenario, and what the figures are not.

    Args:
        report: Of ``edgekit.benchmark.scenarios``.
        machine: Its state in one line.
    """
    out, target, work = console(), report["target"], report["workload"]
    asked = f"{work['prompt_tokens']} tokens in, up to {work['max_tokens']} out, greedy"
    out.print(
        facts_table(
            "",
            [
                ("model", target["model"]),
                ("asked", f"{target['url']} ({target['endpoint']})"),
                ("workload", asked),
                ("machine" if report["machine_is_server"] else "asked from", machine),
            ],
        )
    )
    load = [one for one in report["scenarios"] if one["scenario"] == "load"]
    for one in report["scenarios"]:
        if one["scenario"] != "load":
            _show_scenario(one)
        elif one is load[0]:
            _show_load(load)
    if report["warnings"]:
        out.print()
        notes = [(Text("-"), Text(note, style="dim")) for note in report["warnings"]]
        out.print(facts_table("", notes))


def _show_scenario(one: dict[str, Any]) -> None:
    """Print a scenario's percentiles, and LoadGen's verdict below them."""
    out = console()
    out.print()
    out.print(Text(one["scenario"], style="bold"))
    rows = [(title, *_milliseconds(one[name])) for title, name in _TIMES]
    rows.append(("tokens/s", *_figures(one["tokens_per_s"], 1, 1)))
    out.print(grid_table(("of a request", *MARKS), rows, numbers=MARKS))
    facts = [
        ("throughput", f"{one['output_tokens_per_s']:.1f} tokens/s"),
        ("requests", _count(one)),
    ]
    out.print()
    out.print(facts_table("", [*facts, *_loadgen_rows(one["loadgen"])]))


def _show_load(load: list[dict[str, Any]]) -> None:
    """Print a line for each number of streams."""
    out = console()
    out.print()
    out.print(Text("load", style="bold"))
    columns = ("streams", "tokens/s", "requests", *(f"TTFT {mark}, ms" for mark in MARKS))
    columns += ("TPOT p50, ms",)
    rows = [
        (
            str(one["streams"]),
            f"{one['output_tokens_per_s']:.1f}",
            str(one["requests"]),
            *_milliseconds(one["ttft_s"]),
            _milliseconds(one["tpot_s"])[0],
        )
        for one in load
    ]
    out.print(grid_table(columns, rows, numbers=columns))


def _loadgen_rows(found: dict[str, Any] | None) -> Iterable[tuple[str, str]]:
    """Yield what LoadGen held the server to, its verdict, why, and its own percentiles."""
    if found is None:
        return
    if found["target_qps"] is not None:
        limits = (found["ttft_limit_s"], found["tpot_limit_s"])
        yield (
            "held to",
            "p99 of TTFT {:g} ms, of TPOT {:g} ms, {:g} queries/s".format(
                *(1000 * limit for limit in limits), found["target_qps"]
            ),
        )
    failed = [name.replace("_", " ") for name, passed in found["checks"].items() if not passed]
    yield "LoadGen", f"{found['result']}{': not met ' + ', '.join(failed) if failed else ''}"
    for remark in found["remarks"]:
        yield "", remark
    if found["latency_s"]:
        yield (
            "its latency",
            ", ".join(f"{mark} {1000 * found['latency_s'][mark]:.1f} ms" for mark in MARKS),
        )
    if found["logs"]:
        yield "its logs", found["logs"]


def _count(one: dict[str, Any]) -> str:
    ends = ", ".join(f"{count} ended by {name}" for name, count in one["finish_reasons"].items())
    return f"{one['requests']} in {one['wall_s']:.1f} s: {ends}"


def _milliseconds(found: dict[str, float] | None) -> list[str]:
    return _figures(found, 1000, 2)


def _figures(found: dict[str, float] | None, scale: float, digits: int) -> list[str]:
    """Return the percentiles, or a dash for each where there was nothing to measure."""
    if found is None:
        return ["-"] * len(MARKS)
    return [f"{scale * found[mark]:.{digits}f}" for mark in MARKS]
