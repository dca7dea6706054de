"""Tables at any width: names stay whole, nothing is folded letter by letter."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner
from rich.console import Console

from edgekit.cli.commands.recipes import command as recipes
from edgekit.cli.render import console, facts_table, grid_table
from edgekit.models.published import PUBLISHED
from edgekit.recipe import shipped_recipes

ROWS = [
    ("DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", "1.78 B", "128k"),
    ("deepseek-coder-7b-instruct-v1.5", "llama", "6.91 B", "4k"),
]


def shown(width: int) -> list[str]:
    out = io.StringIO()
    columns = ("published model", "family", "size", "context")
    Console(file=out, width=width).print(grid_table(columns, ROWS, numbers=("size",)))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_wide_terminal_gets_a_table() -> None:
    """With room there is one line a row under the headings."""
    lines = shown(80)
    assert len(lines) == 2 + len(ROWS)
    assert lines[2].split() == ["DeepSeek-R1-Distill-Qwen-1.5B", "qwen2", "1.78", "B", "128k"]


@pytest.mark.parametrize("width", [34, 50, 56])
def test_a_narrow_terminal_gets_blocks(width: int) -> None:
    """Without room each row is its name and, below it, the labelled rest, within the width."""
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert lines[:2] == ["published model", "DeepSeek-R1-Distill-Qwen-1.5B"]
    assert "  family qwen2, size 1.78 B," in lines[2]


def test_without_a_terminal_nothing_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read by programs keeps digests and paths whole, unless COLUMNS asks for less."""
    rows = [("a name of some length", "sha256:" + 64 * "f")]
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print(facts_table("", rows))
    assert rows[0][1] in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    console().print(facts_table("", rows))
    assert rows[0][1] not in capsys.readouterr().out


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_recipes_are_readable_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of ``edgekit recipes`` is too long, none holds a single letter."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line.strip() for line in CliRunner().invoke(recipes).output.splitlines()]
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if len(line) == 1]
    assert any("deepseek-coder-7b-instruct-v1.5" in line for line in lines)
    assert len(lines) < 4 * (len(PUBLISHED) + len(shipped_recipes()))
