"""What a person sees: progress bars, tables, JSON. Results go to stdout, the rest to stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console, JustifyMethod
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from edgekit.units import format_bytes, format_duration

if TYPE_CHECKING:
    from typing_extensions import Self


def console() -> Console:
    """Return a console on stdout."""
    return Console(highlight=False)


def error_console() -> Console:
    """Return a console on stderr."""
    return Console(stderr=True, highlight=False)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def facts_table(title: str, rows: Iterable[tuple[str | Text, str | Text]]) -> Table:
    """Return a two-column table of names and values; plain strings are shown as they are."""
    heading = Text(title) if title else None
    table = Table(title=heading, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def grid_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Container[str] = ()
) -> Table:
    """Return a table that keeps names (the first column) whole.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Columns to align right.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        justify: JustifyMethod = "right" if column in numbers else "left"
        table.add_column(column, justify=justify, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(value: str | Text) -> Text:
    """Return a string unparsed: names and paths may hold what Rich takes for markup."""
    return value if isinstance(value, Text) else Text(value)


class StageProgress:
    """Draws the stages of a build on stderr: a bar with rate while a stage runs, a line after.

    Without a terminal only the finished lines are printed, so logs stay readable.
    """

    def __init__(self) -> None:
        self._console = error_console()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<10}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[item]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._started_s = 0.0
        self._done_bytes = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, stage: str, total_bytes: int) -> None:
        """Begin a stage."""
        self._stage, self._started_s, self._done_bytes = stage, time.monotonic(), 0
        self._task = self._bar.add_task(stage, total=total_bytes or None, item="")

    def advance(self, done_bytes: int, item: str = "") -> None:
        """Count bytes and show the current item."""
        self._done_bytes += done_bytes
        if self._task is not None:
            self._bar.update(self._task, advance=done_bytes, item=item)

    def finish(self, summary: str = "") -> None:
        """Replace the bar by one line."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        elapsed_s = time.monotonic() - self._started_s
        rate = ""
        if self._done_bytes and elapsed_s > 0:
            rate = f", {format_bytes(self._done_bytes / elapsed_s)}/s"
        took = f"[dim]({format_duration(elapsed_s)}{rate})[/]"
        self._console.print(f"[green]✓[/] [bold]{self._stage:<10}[/] {summary} {took}")
