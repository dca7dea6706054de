"""What a person sees: tables and JSON. Results go to stdout, the rest to stderr.

Progress is drawn by ``edgekit.cli.stages``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit.cli.stages import StageProgress

__all__ = ["StageProgress", "console", "error_console", "facts_table", "grid_table", "print_json"]

PROSE_CHARS = 24
"""A column with longer cells is wrapped between words, down to this width, before a table gives
up its columns."""
LOG_CHARS = 1000
"""Width of what is no terminal, unless COLUMNS says one: digests and paths stay whole for grep."""
GAP_CHARS = 3
"""Between two columns of ``box.SIMPLE_HEAD``."""


def console() -> Console:
    """Return a console on stdout; without a terminal its lines are as long as they are."""
    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = LOG_CHARS
    return out


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
) -> GridTable:
    """Return a table that keeps names (the first column) and short cells whole.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Columns to align right.
    """
    return GridTable(columns, [list(row) for row in rows], numbers)


class GridTable:
    """A table, or where the terminal is too narrow for one, a block of lines a row.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Columns to align right.
    """

    def __init__(
        self, columns: Sequence[str], rows: list[list[str]], numbers: Container[str]
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._numbers = numbers

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose the form that fits."""
        del console
        widths = [
            max(Text(cell).cell_len for cell in (title, *cells))
            for title, *cells in zip(self._columns, *self._rows, strict=True)
        ]
        least = [widths[0], *(min(width, PROSE_CHARS) for width in widths[1:])]
        if sum(least) + GAP_CHARS * (len(least) - 1) <= options.max_width:
            yield self._table(widths)
        else:
            yield from self._blocks()

    def _table(self, widths: list[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, (column, width) in enumerate(zip(self._columns, widths, strict=True)):
            justify: JustifyMethod = "right" if column in self._numbers else "left"
            whole = index == 0 or width <= PROSE_CHARS
            table.add_column(column, justify=justify, no_wrap=whole, overflow="fold")
        for row in self._rows:
            table.add_row(*map(_cell, row))
        return table

    def _blocks(self) -> Iterable[Text | Padding]:
        """Yield each row's name, and below it what the other columns say."""
        yield Text(self._columns[0], style="bold dim")
        for name, *cells in self._rows:
            yield Text(name, style="bold", overflow="fold")
            pairs = zip(self._columns[1:], cells, strict=True)
            labelled = [Text.assemble((f"{column} ", "dim"), cell) for column, cell in pairs]
            facts = Text(", ").join(labelled if len(cells) > 1 else map(Text, cells))
            facts.overflow = "fold"
            yield Padding(facts, (0, 0, 0, 2))


def _cell(value: str | Text) -> Text:
    """Return a string unparsed: names and paths may hold what Rich takes for markup."""
    return value if isinstance(value, Text) else Text(value)
