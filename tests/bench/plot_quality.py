"""Draw bits per linear weight against KL divergence out of bench_quality.py's JSON files.

    python tests/bench/plot_quality.py tiny.json mini.json --out quality.png

One panel a checkpoint, the same axes in all; lower and further left is better.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLES = {
    "edgekit": ("o", "#0b6e4f"),
    "genai": ("s", "#c1666b"),
    "llama.cpp": ("^", "#4059ad"),
    "baseline": ("x", "#555555"),
}
"""Marker and colour of each family that is drawn; checks of the method are not."""
LABEL_RISE = {"edgekit": -8, "genai": 0, "llama.cpp": 0, "baseline": 8}
"""Points by which labels stand above their markers: some families' points are neighbours."""
CROWDED_BITS = 6.0
"""Below it the models crowd together and are drawn a second time, enlarged."""


def draw(documents: Sequence[dict[str, Any]], out: Path) -> None:
    """Write a PNG of the given results; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1,
        len(documents),
        figsize=(8 * len(documents), 6.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for panel, document in zip(panels[0], documents, strict=True):
        _draw_panel(panel, document)
    panels[0][0].set_ylabel("mean KL divergence from bf16 (nats)")
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    plt.close(figure)
    print(f"written: {out}")


def _draw_panel(panel: Any, document: dict[str, Any]) -> None:
    """Draw all points, and the crowd of 4-bit models again, larger, where the panel is empty."""
    rows = [row for row in document["rows"] if row["family"] in STYLES]
    crowd = [row for row in rows if row["bits_per_linear_weight"] < CROWDED_BITS]
    _draw_points(panel, rows)
    _label_points(panel, [row for row in rows if row not in crowd])
    panel.set_xlim(3.8, 9.2)
    panel.set_xlabel("bits per linear weight, as stored, head included")
    panel.set_title(f"{document['checkpoint']}, {document['tokens']} tokens")
    panel.legend(loc="lower left")
    if crowd:
        inset = panel.inset_axes((0.36, 0.31, 0.62, 0.65))
        _draw_points(inset, crowd)
        _label_points(inset, crowd)
        bits = [row["bits_per_linear_weight"] for row in crowd]
        inset.set_xlim(min(bits) - 0.1, max(bits) + 0.3)
        inset.margins(y=0.08)
        inset.tick_params(which="both", labelsize=7)
        panel.indicate_inset_zoom(inset, edgecolor="#999999")


def _draw_points(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for family, (marker, colour) in STYLES.items():
        chosen = [row for row in rows if row["family"] == family]
        bits = [row["bits_per_linear_weight"] for row in chosen]
        divergence = [row["kl_divergence_nats"] for row in chosen]
        if chosen:
            axes.plot(bits, divergence, marker, color=colour, label=family, markersize=6)
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.25)


def _label_points(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        point = (row["bits_per_linear_weight"], row["kl_divergence_nats"])
        axes.annotate(
            row["name"].removeprefix(f"{row['family']} "),
            point,
            xytext=(6, LABEL_RISE[row["family"]]),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=STYLES[row["family"]][1],
        )


def main() -> int:
    """Draw the files on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    draw([json.loads(path.read_text()) for path in options.results], options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
