"""Write edgekit/plan/engines.toml: each engine's parameters, fitted on the rows of rows.toml.

python scripts/fit_engines.py
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from edgekit.plan.fitting import fit_engines, fit_sm_bytes_per_clock, published_rows
from edgekit.plan.roofline import find_engine

OUT = Path(__file__).parents[1] / "edgekit/plan/engines.toml"
HEAD = "# Written by scripts/fit_engines.py from rows.toml; do not edit: a test compares.\n"


def render() -> str:
    """Return the file's text."""
    rows = published_rows()
    engines = fit_engines(rows)
    lines = [HEAD, f"sm_bytes_per_clock = {fit_sm_bytes_per_clock(rows, engines)}"]
    for (name, machine), engine in engines.items():
        lines.append(f'\n[engine."{name}".{machine}]')
        values = {k: v for k, v in asdict(engine).items() if isinstance(v, float) and v}
        lines += [f"{key} = {value!r}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def table() -> str:
    """Return published and projected rates, a line of Markdown a row."""
    lines = []
    for row in published_rows():
        if row.kind == "low_power":
            continue
        engine, _ = find_engine(row.engine, row.calibration)
        what = f"{row.kind} {row.batch}" if row.batch > 1 else row.kind
        cells = (
            f"{row.engine}, {row.machine.title.removeprefix('Jetson ')}",
            what,
            row.name,
            str(row.context),
            f"{row.rate:g}",
            f"{row.predict(engine):.4g}",
            f"{100 * row.error(engine):+.1f} %",
            "fit" if row.fitted else "kept aside",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--table" in sys.argv:
        print(table())
        sys.exit()
    OUT.write_text(render(), encoding="utf-8")
    print(OUT)
