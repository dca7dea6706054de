"""What a person sees: consoles and JSON. Results go to stdout, the rest to stderr.

Tables are laid out by ``edgekit.cli.tables``, progress is drawn by ``edgekit.cli.stages``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from edgekit.cli.stages import StageProgress
from edgekit.cli.tables import facts_table, grid_table

__all__ = ["StageProgress", "console", "error_console", "facts_table", "grid_table", "print_json"]

LOG_CHARS = 1000
"""Width of what is no terminal, unless COLUMNS says one: digests and paths stay whole for grep."""


class WholeConsole(Console):
    """A console whose too long words run on: a terminal wraps them so that they can be copied."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and crop nothing."""
        super().print(*objects, **{"crop": False, **options})


def console() -> Console:
    """Return a console on stdout; without a terminal its lines are as long as they are."""
    out = WholeConsole(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = LOG_CHARS
    return out


def error_console() -> Console:
    """Return a console on stderr."""
    return Console(stderr=True, highlight=False)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout.

    Raises:
        ValueError: A figure is NaN or infinite, which JSON has no word for.
    """
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
