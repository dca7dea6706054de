"""What a person sees: consoles and JSON. Results go to stdout, the rest to stderr.

Tables are laid out by ``edgekit.cli.tables``, progress is drawn by ``edgekit.cli.stages``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import click
from rich.console import Console

from edgekit.cli.stages import StageProgress
from edgekit.cli.tables import facts_table, grid_table
from edgekit.errors import StorageError

__all__ = ["StageProgress", "console", "error_console", "facts_table", "grid_table", "print_json"]

LOG_CHARS = 1000
"""Width of what is no terminal, unless COLUMNS says one: digests and paths stay whole for grep."""


class ReaderGoneError(Exception):
    """Nobody reads stdout any more; a BrokenPipeError would be taken for a failure by click."""


class WholeConsole(Console):
    """A console whose too long words run on: a terminal wraps them so that they can be copied."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, and crop nothing."""
        with _output_errors():
            super().print(*objects, **{"crop": False, **options})

    def on_broken_pipe(self) -> None:
        """Leave a reader that is gone to ``main``: rich's own way ends with exit code 1."""
        raise BrokenPipeError


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
        StorageError: It cannot be written.
    """
    ascii_only = not is_utf8(sys.stdout)
    with _output_errors():
        click.echo(json.dumps(data, indent=2, ensure_ascii=ascii_only, allow_nan=False))


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    """Turn what keeps stdout from being written into an error of one line.

    Raises:
        ReaderGoneError: The reader is gone, which is no error.
        StorageError: Anything else.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise StorageError(
            f"standard output cannot be written: {error.strerror or error}",
            "Free space there, or send it elsewhere",
        ) from error


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream takes every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
