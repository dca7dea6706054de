"""A hardware run's JSON as Markdown that a person reads."""

from __future__ import annotations

from typing import Any

import report

from edgekit.units import format_bytes, format_duration

ORDER = ("software", "engine", "gate", "projection", "speed")
"""Of the steps; JSON sorts them by name."""


def readable(document: dict[str, Any]) -> str:
    """Return the report of a run, whole or cut short."""
    lines = [f"# edgekit on hardware: {document['verdict']}", ""]
    bundle = document["bundle"]
    lines += [
        f"- bundle {bundle}, {document['digest'] or 'not opened'}" if bundle else "- no bundle"
    ]
    lines += [f"- {document['time']}"]
    if document["missing"]:
        lines += ["", "## Missing", ""]
        lines += [f"- {row['what']}. {row['remedy']}" for row in document["missing"]]
    for name, step in sorted(document["steps"].items(), key=lambda item: ORDER.index(item[0])):
        lines += ["", f"## {name.capitalize()}: {step['status']}", ""]
        if step["status"] == "failed":
            error = step["error"]
            lines += [f"{error['kind']}: {error['message']}. {error['remedy']}".rstrip()]
        else:
            lines += _found(name, step["found"], document["steps"])
    lines += ["", "## Machine", ""]
    for when, state in document["states"].items():
        lines += [f"- {when}: {_state(state)}"]
        lines += [f"  - warning: {warning}" for warning in state["warnings"]]
    return "\n".join([*lines, "", "Send this file and hardware.json back.", ""])


def _found(name: str, found: Any, steps: dict[str, Any]) -> list[str]:
    if name == "speed":
        return _speed(found, _projected(steps))
    if name == "projection":
        return [f"By `edgekit plan` at power mode {found['power_mode']}, beside the speeds below."]
    write = {"software": _software, "engine": _engine, "gate": _gate}[name]
    return write(found)


def _software(found: dict[str, Any]) -> list[str]:
    tensorrt = found["tensorrt"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return [
        f"- {tensorrt['name']} {tensorrt['version']} for SM {tensorrt['sm']}, L4T {found['l4t']}",
        f"- kernel {found['kernel']}, Python {found['python']}, {packages}",
    ]


def _engine(found: dict[str, Any]) -> list[str]:
    return [
        f"- {'built' if found['built'] else 'found'} in {format_duration(found['seconds'])}, "
        f"{format_bytes(found['size_bytes'])}, attention {found['attention']}",
        f"- memory taken {format_bytes(found['memory_taken_bytes'])}, "
        f"planned {format_bytes(found['memory_planned_bytes'])}",
    ]


def _gate(found: dict[str, Any]) -> list[str]:
    return [
        f"- {found['tokens']} golden tokens: KL at least "
        f"{found['kl_divergence_bound_nats']:.3g} nats, mean difference "
        f"{found['mean_abs_difference_nats']:.4f} nats, top-1 agreement "
        f"{100 * found['top1_agreement']:.1f} % of {found['clear_positions']} clear ones",
        *(f"- missed: {failure}" for failure in found["failures"]),
    ]


def _projected(steps: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Return the decode rates that `edgekit plan` projects, by batch and context."""
    found = steps.get("projection", {}).get("found") or {"rates": []}
    return {
        (row["batch"], row["context_tokens"]): row["decode_tokens_per_s"] for row in found["rates"]
    }


def _speed(rows: list[dict[str, Any]], projected: dict[tuple[int, int], float]) -> list[str]:
    names = ("prefill_tokens_per_s", "decode_tokens_per_s", "step_ms_median", "step_ms_95")
    header = ["batch, context", "prefill tok/s", "decode tok/s", "step ms", "95 %", "CUDA graphs"]
    header.append("projected tok/s")
    cells, notes = [], []
    for row in rows:
        where = f"{row['batch']}, {row['context']}"
        if row["status"] == "passed":
            figures = [f"{row[name]:.2f}" for name in names]
            rate = projected.get((row["batch"], row["context"]))
            expected = "-" if rate is None else f"{rate:.2f}"
            cells.append([where, *figures, str(row["cuda_graphs"]), expected])
        else:
            notes.append(f"- {where}: not run, {row['reason']}")
    table = [report.table(header, cells), ""] if cells else []
    return [*table, *notes]


def _state(state: dict[str, Any]) -> str:
    hottest = max(state["celsius"].values(), default=None)
    parts = [
        state["described"],
        f"{format_bytes(state['available_bytes'])} of {format_bytes(state['total_bytes'])} free",
        "" if hottest is None else f"hottest sensor {hottest:.0f} °C",
    ]
    return "; ".join(filter(None, parts))
