"""Progress in a terminal: one line at any width, with percent, rate and time; a log without one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from edgekit.cli.stages import StageProgress, format_count, format_rate

LONG_ITEM = "model.layers.27.self_attn.q_proj of deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def running(width: int, total: int, unit: str, done: int, item: str = LONG_ITEM) -> str:
    """Return the line of a stage under way."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    progress = StageProgress(console=console)
    progress.start("sensitivity", total, unit)
    progress.advance(done, item)
    lines = console.render_lines(progress._bar.get_renderable(), pad=False)
    assert len(lines) == 1, "the line wraps"
    text = "".join(segment.text for segment in lines[0])
    assert len(text.rstrip()) <= width
    return text


@pytest.mark.parametrize("width", [50, 60, 80, 120])
@pytest.mark.parametrize("unit", ["bytes", "tokens", "prompts"])
def test_percent_rate_and_time_are_whole(width: int, unit: str) -> None:
    """However narrow, a line has the stage, the percent, the rate with its unit and the time."""
    text = running(width, 15_231_000_000, unit, 6_092_400_000)
    rate = r"[\d.]+ (B|kB|MB|GB)/s" if unit == "bytes" else rf"[\d.]+ {unit}/s"
    assert re.search(rf"sensitivity .* 40 % {rate} [\d.]+ s( |$)", text), text


def test_more_room_shows_more() -> None:
    """The bar comes first, then the sizes, then as much of the item as fits."""
    assert "━" in running(50, 15_231_000_000, "bytes", 6_092_400_000)
    assert "6.09/15.23 GB" not in running(50, 15_231_000_000, "bytes", 6_092_400_000)
    assert "6.09/15.23 GB" in running(80, 15_231_000_000, "bytes", 6_092_400_000)
    assert "model.layers.27" in running(120, 15_231_000_000, "bytes", 6_092_400_000)


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_unknown_size_is_not_shown(width: int) -> None:
    """A stage of unknown length shows a bar, the time and the item, and no ``0/? bytes``."""
    text = running(width, 0, "bytes", 0)
    assert "?" not in text
    assert "%" not in text
    assert "model." in text


def test_a_stage_that_failed_leaves_the_line_to_the_next() -> None:
    """Where work goes on in another way, the bar of the way given up does not stay beside it."""
    progress = StageProgress(console=Console(file=io.StringIO(), force_terminal=True, width=80))
    progress.start("engine", 10)
    progress.start("digests", 0)
    assert [task.description for task in progress._bar.tasks] == ["digests"]


def test_items_are_not_markup() -> None:
    """Names may hold what Rich takes for markup."""
    assert "[bold]x[/]" in running(120, 0, "bytes", 0, "[bold]x[/]")


def test_logs_have_one_line_a_stage() -> None:
    """Without a terminal only finished stages are printed, unwrapped and as they are."""
    out = io.StringIO()
    summary = "a [summary] that is longer than the eighty columns of a terminal nobody has, by far"
    with StageProgress(console=Console(file=out)) as progress:
        progress.start("check", 10)
        progress.advance(10, "x")
        progress.finish(summary)
    assert re.fullmatch(
        rf"✓ check       {re.escape(summary)} \([\d.]+ s, [\d.]+ .?B/s\)\n", out.getvalue()
    )


def test_a_finished_line_goes_on_below_its_summary() -> None:
    """In a terminal too narrow for it, a finished line is wrapped beside the stage's name."""
    out = io.StringIO()
    with StageProgress(console=Console(file=out, force_terminal=True, width=50)) as progress:
        progress.start("check", 10)
        progress.finish("KL divergence 0.1670 nats, top-1 agreement 82.8 %")
    said = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", out.getvalue())
    first, second = map(str.rstrip, said.rpartition("✓")[2].splitlines()[:2])
    assert first == " check       KL divergence 0.1670 nats, top-1"
    assert re.fullmatch(r" {14}agreement 82\.8 % \([\d.]+ s\)", second)


def test_quiet_prints_nothing_in_a_log() -> None:
    """A command whose answer is the output leaves no lines of its stages."""
    out = io.StringIO()
    with StageProgress(quiet=True, console=Console(file=out)) as progress:
        progress.start("digests", 10)
        progress.finish("whole")
    assert out.getvalue() == ""


def test_units() -> None:
    """Bytes are scaled, other units are counted."""
    assert format_rate(1_340_000_000, "bytes") == "1.34 GB/s"
    assert format_rate(12.34, "tokens") == "12.3 tokens/s"
    assert format_count(12, "prompts") == "12 prompts"
