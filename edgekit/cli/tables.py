"""Tables that a person can read, and copy from, at any width from 50 columns.

What does not fit beside something is put below it. A digest, a path or a name is never folded: in a
terminal that is narrower than the word itself, it runs on where the terminal wraps it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

PROSE_CHARS = 24
"""A column with longer cells is wrapped between words, down to this width, before a table gives
up its columns."""
GAPS = (3, 2)
"""Between two columns: ``box.SIMPLE_HEAD``'s own, and where that is too wide."""
INDENT = "  "


def facts_table(title: str, rows: Iterable[tuple[str | Text, str | Text]]) -> FactsTable:
    """Return a two-column table of names and values; plain strings are shown as they are."""
    return FactsTable(title, [(_cell(name), _cell(value)) for name, value in rows])


def grid_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Container[str] = (),
    telling: Container[str] = (),
) -> GridTable:
    """Return a table that keeps names (the first column) and short cells whole.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Columns to align right.
        telling: Columns whose cells need no heading where there is no room for one.
    """
    return GridTable(columns, [list(row) for row in rows], numbers, telling)


class FactsTable:
    """Names, and beside each its value; below where a word of it, or prose, does not fit beside.

    Args:
        title: A line above, or empty.
        rows: Name and value.
    """

    def __init__(self, title: str, rows: list[tuple[Text, Text]]) -> None:
        self._title = title
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        del console
        if self._title:
            yield _whole(Text(self._title, "italic"))
        labels = max((name.cell_len for name, _ in self._rows), default=0) + len(INDENT)
        beside = options.max_width - labels
        for name, value in self._rows:
            longest = max(map(cell_len, value.plain.split()), default=0)
            stacked = longest > beside or beside < PROSE_CHARS
            indent = len(INDENT) if stacked else labels
            if longest + indent > options.max_width:
                indent = 0  # it runs on from line to line: nothing may stand before it
            label = Text.assemble(name, style="bold")
            lines = _wrapped(value, options.max_width - indent)
            if not stacked:
                label.append(" " * (labels - name.cell_len))
                label = Text.assemble(label, lines.pop(0))
            yield _whole(label)
            for line in lines:
                yield _whole(Text.assemble(" " * indent, line))


class GridTable:
    """A table, or where the terminal is too narrow for one, a block of lines a row.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Columns to align right.
        telling: Columns whose cells need no heading in a block.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: list[list[str]],
        numbers: Container[str],
        telling: Container[str],
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._numbers = numbers
        self._telling = telling

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose the form that fits: a table, one of two-line headings, blocks."""
        del console
        cells = list(zip(*self._rows, strict=True)) or [()] * len(self._columns)
        content = [max(map(cell_len, column), default=0) for column in cells]
        for gap, split in ((GAPS[0], False), (GAPS[1], True)):
            headings = [
                max(map(cell_len, title.split() if split else [title])) for title in self._columns
            ]
            widths = list(map(max, content, headings))
            least = [widths[0], *(min(width, PROSE_CHARS) for width in widths[1:])]
            if sum(least) + gap * (len(least) - 1) <= options.max_width:
                yield self._table(widths, gap)
                return
        yield from self._blocks(options.max_width)

    def _table(self, widths: list[int], gap: int) -> Table:
        """Return the table; a heading is broken between its words where its column is narrower."""
        padding = (0, 1) if gap == GAPS[0] else (0, 1, 0, 0)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
        for index, (column, width) in enumerate(zip(self._columns, widths, strict=True)):
            justify: JustifyMethod = "right" if column in self._numbers else "left"
            whole = index == 0 or width <= PROSE_CHARS
            least = width if whole else PROSE_CHARS
            most = width if whole else None
            table.add_column(
                column, justify=justify, overflow="fold", min_width=least, max_width=most
            )
        for row in self._rows:
            table.add_row(*map(_cell, row))
        return table

    def _blocks(self, width: int) -> Iterable[Text]:
        """Yield each row's name, and below it what the other columns say."""
        yield Text(self._columns[0], style="bold dim")
        for name, *cells in self._rows:
            yield _whole(Text(name, style="bold"))
            if len(cells) == 1:
                lines = _wrapped(Text(cells[0]), width - len(INDENT))
            else:
                pairs = zip(self._columns[1:], cells, strict=True)
                facts = [
                    cell if column in self._telling else f"{column} {cell}"
                    for column, cell in pairs
                ]
                lines = list(_filled(facts, width - len(INDENT)))
            for line in lines:
                yield _whole(Text.assemble(INDENT, line))


def _filled(facts: list[str], width: int) -> Iterable[Text]:
    """Yield lines of as many facts as fit, none broken."""
    line = ""
    for index, fact in enumerate(facts):
        piece = fact + ("," if index < len(facts) - 1 else "")
        if line and cell_len(f"{line} {piece}") > width:
            yield Text(line)
            line = piece
        else:
            line = f"{line} {piece}".strip()
    yield Text(line)


def _wrapped(text: Text, width: int) -> list[Text]:
    """Break a text between its words; a word longer than the width stays whole."""
    found = []
    for line in text.split("\n", allow_blank=True):
        breaks: list[int] = []
        start = 0
        for word in re.finditer(r"\S+", line.plain):
            before = line.plain[start : word.start()].strip()
            if before and cell_len(line.plain[start : word.end()]) > width:
                start = word.start()
                breaks.append(start)
        for part in line.divide(breaks):
            part.rstrip()
            found.append(part)
    return found or [Text()]


def _whole(line: Text) -> Text:
    """Let a line be as long as it is."""
    line.no_wrap, line.overflow = True, "ignore"
    return line


def _cell(value: str | Text) -> Text:
    """Return a string unparsed: names and paths may hold what Rich takes for markup."""
    return value if isinstance(value, Text) else Text(value)
