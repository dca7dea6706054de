"""Write edgekit/plan/engines.toml: each engine's parameters, fitted on the rows of rows.toml.

    python scripts/fit_engines.py
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from edgekit.plan.fitting import fit_engines, fit_sm_bytes_per_clock, published_rows

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


if __name__ == "__main__":
    OUT.write_text(render(), encoding="utf-8")
    print(OUT)
