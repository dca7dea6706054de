"""Draws the stages of long work on stderr: a line with bar and rate while a stage runs, one after.

A line never wraps: what does not fit the terminal is left out, the least needed first (the item,
the sizes, the bar), so that percent, rate and time stay readable down to 50 columns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from edgekit.progress import BYTES
from edgekit.units import format_bytes, format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType
    from typing_extensions import Self

STAGE_CHARS = 11
"""Of the longest stage's name, ``sensitivity``."""
BAR_CHARS = (8, 30)
"""Narrowest and widest bar."""
ITEM_CHARS = 12
"""An item gets at least this much room, or none."""


class StageProgress:
    """Draws the stages of a command.

    Without a terminal only the finished lines are printed, so logs stay readable.

    Args:
        quiet: Print no finished lines: the command's own output is what matters.
        console: Where to draw; stderr when None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._bar = _StageLine(self._console)
        self._task: TaskID | None = None
        self._stage = ""
        self._unit = BYTES
        self._started_s = 0.0
        self._done = 0
        self._counting = threading.Lock()

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

    def start(self, stage: str, total: int, unit: str = BYTES) -> None:
        """Begin a stage."""
        self._stage, self._unit = stage, unit
        self._started_s, self._done = time.monotonic(), 0
        self._task = self._bar.add_task(stage, total=total or None, item="", unit=unit)

    def advance(self, done: int, item: str = "") -> None:
        """Count what passed and show the current item."""
        with self._counting:
            self._done += done
        if self._task is not None:
            self._bar.update(self._task, advance=done, item=item)

    def finish(self, summary: str = "") -> None:
        """Replace the bar by one line."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        if self._quiet:
            return
        elapsed_s = time.monotonic() - self._started_s
        rate = ""
        if self._done and elapsed_s > 0:
            rate = f", {format_rate(self._done / elapsed_s, self._unit)}"
        took = f"[dim]({format_duration(elapsed_s)}{rate})[/]"
        mark, stage = "[green]✓[/]", f"[bold]{self._stage:<{STAGE_CHARS}}[/]"
        if self._console.is_terminal:  # what does not fit goes on below the summary
            line = Table.grid(Column(no_wrap=True), Column(no_wrap=True), Column(), padding=(0, 1))
            line.add_row(mark, stage, f"{escape(summary)} {took}")
            self._console.print(line)
        else:  # a log's lines stay whole
            self._console.print(f"{mark} {stage} {escape(summary)} {took}", soft_wrap=True)


def format_rate(per_second: float, unit: str) -> str:
    """Format a rate for a person: ``1.34 GB/s``, ``12.3 tokens/s``."""
    if unit == BYTES:
        return f"{format_bytes(per_second)}/s"
    return f"{per_second:.1f} {unit}/s"


def format_count(count: float, unit: str) -> str:
    """Format an amount for a person: ``1.34 GB``, ``12 tokens``."""
    return format_bytes(count) if unit == BYTES else f"{count:.0f} {unit}"


class _StageLine(Progress):
    """Lays a running stage out in one line as wide as the terminal."""

    def __init__(self, console: Console) -> None:
        self._spinner = SpinnerColumn()
        super().__init__(
            self._spinner, console=console, transient=True, disable=not console.is_terminal
        )

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return one line a task."""
        table = Table.grid(Column(no_wrap=True, overflow="ellipsis"))
        for task in tasks:
            table.add_row(self._line(task))
        return table

    def _line(self, task: Task) -> RenderableType:
        unit, room = task.fields["unit"], self.console.width - 1
        parts: list[RenderableType] = [
            self._spinner.render(task),
            Text(f"{task.description:<{STAGE_CHARS}}", style="bold"),
        ]
        facts = [Text(format_duration(task.elapsed or 0), style="yellow")]
        if task.completed:
            rate = task.finished_speed or task.speed or 0.0
            facts.insert(0, Text(format_rate(rate, unit), style="red"))
        if task.total:
            facts.insert(0, Text(f"{task.percentage:3.0f} %", style="magenta"))
        room -= 2 + STAGE_CHARS + sum(1 + fact.cell_len for fact in facts)
        count = _count(task, unit)
        bar_chars = min(BAR_CHARS[1], max(room // 2, min(room - 1, BAR_CHARS[0])))
        if bar_chars >= BAR_CHARS[0]:
            room -= 1 + bar_chars
            parts.append(self._draw_bar(task, bar_chars))
        if count is not None and count.cell_len + 1 <= room:
            room -= 1 + count.cell_len
            facts.insert(0, count)
        item = Text(task.fields["item"], style="dim")
        if room > ITEM_CHARS:
            item.truncate(room - 1, overflow="ellipsis")
            facts.append(item)
        line = Table.grid(*(Column(no_wrap=True) for _ in (*parts, *facts)), padding=(0, 1, 0, 0))
        line.add_row(*parts, *facts)
        return line

    @staticmethod
    def _draw_bar(task: Task, chars: int) -> ProgressBar:
        return ProgressBar(
            total=task.total,
            completed=task.completed,
            width=chars,
            pulse=task.total is None,
            animation_time=task.get_time(),
        )


def _count(task: Task, unit: str) -> Text | None:
    """Return how much has passed, of how much if that is known; None before anything has."""
    if task.total:
        done, total = format_count(task.completed, unit), format_count(task.total, unit)
        if done.partition(" ")[2] == total.partition(" ")[2]:
            done = done.partition(" ")[0]
        return Text(f"{done}/{total}", style="green")
    return Text(format_count(task.completed, unit), style="green") if task.completed else None
