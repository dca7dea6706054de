"""A matplotlib figure as a file: PNG, or a page of HTML with the drawing inside.

Needs matplotlib, the extra ``plot``.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from edgekit.errors import EdgekitError, MissingExtraError

SUFFIXES = (".png", ".html")


def require_format(path: Path) -> None:
    """Refuse a file whose name says no format.

    Raises:
        EdgekitError: The file's suffix is neither ``.png`` nor ``.html``.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise EdgekitError(
            f"--plot {path}: {path.suffix or 'no suffix'} is no format of a plot",
            f"Use {' or '.join(SUFFIXES)}",
        )


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure whose file is the same for the same content.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        MissingExtraError: There is no matplotlib.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("--plot", "plot") from error
    mpl.rcParams["svg.hashsalt"] = "edgekit"
    return Figure(figsize=(width, height), layout="constrained")


def figure_bytes(figure: Any, path: Path, title: str, notes: str) -> bytes:
    """Return a figure's file.

    Args:
        figure: Of matplotlib's.
        path: File it is for: its suffix says the format.
        title: Of the page; a PNG has it in the figure only.
        notes: Below the drawing in the page.
    """
    data = io.BytesIO()
    if path.suffix.lower() == ".png":
        figure.savefig(data, format="png", dpi=150)
        return data.getvalue()
    figure.savefig(data, format="svg", metadata={"Date": None})
    svg, head = data.getvalue().decode(), html.escape(title)
    drawing = svg[svg.index("<svg") :]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{head}</title></head>"
        f"<body><h1>{head}</h1>\n{drawing}\n<p>{html.escape(notes)}</p></body></html>\n"
    ).encode()
