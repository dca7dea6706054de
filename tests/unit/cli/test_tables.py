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


@pytest.mark.parametrize("width", [34, 50, 55])
def test_a_narrow_terminal_gets_blocks(width: int) -> None:
    """Without room each row is its name and, below it, the labelled rest, within the width."""
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert lines[:2] == ["published model", "DeepSeek-R1-Distill-Qwen-1.5B"]
    assert "  family qwen2, size 1.78 B," in lines[2]


def test_without_a_terminal_nothing_is_folded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read by programs has a fact a line, unless COLUMNS asks for less."""
    rows = [("a name of some length", "sha256:" + 64 * "f"), ("prose", "word " * 40)]
    monkeypatch.delenv("COLUMNS", raising=False)
    console().print(facts_table("", rows))
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    monkeypatch.setenv("COLUMNS", "80")
    console().print(facts_table("", rows))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(rows) + 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("width", "line"), [(120, 0), (80, 1), (50, 1)])
def test_a_digest_is_never_folded(
    width: int, line: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands beside its name, else below it, whole; wider than all, it stands alone."""
    monkeypatch.setenv("COLUMNS", str(width))
    digest = "sha256:" + 64 * "f"
    rows = [("digest", digest), ("cache bytes per token", "3072")]
    console().print(facts_table("", rows))
    lines = capsys.readouterr().out.splitlines()
    assert lines[line].strip().removeprefix("digest").strip() == digest
    assert lines[line].startswith(digest) is (width == 50)
    assert lines[-1] == "cache bytes per token  3072"
    assert not [found for found in lines if found != found.rstrip()]


def test_a_fact_goes_on_beside_its_name() -> None:
    """Wrapped prose stays in its column; where that is no column any more, all stands below."""
    rows = [("name", "some words that are wrapped")]
    assert facts(30, rows) == ["name  some words that are", "      wrapped"]
    assert facts(60, rows) == ["name  some words that are wrapped"]
    assert facts(30, [("a longer name", "x"), *rows]) == [
        "a longer name", "  x", "name", "  some words that are wrapped"
    ]  # fmt: skip
    assert facts(60, [("a", "two\nlines")]) == ["a  two", "   lines"]
    assert facts(60, []) == []


def facts(width: int, rows: list[tuple[str, str]]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(facts_table("", rows))
    return out.getvalue().splitlines()


def test_headings_are_broken_before_a_table_is_given_up() -> None:
    """Between the two forms there is a table with two-line headings and narrower gaps."""
    columns = ("batch", "context", "decode tok/s", "prefill tok/s", "J/token ≤", "USD/M tokens")
    row = ("8", "4096", "151.2", "1567", "0.40", "0.76")
    out = io.StringIO()
    Console(file=out, width=50).print(grid_table(columns, [row], numbers=columns))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["batch", "context", "tok/s", "tok/s", "≤", "tokens"]
    assert lines[3].split() == list(row)
    assert max(map(len, lines)) <= 50


def test_blocks_break_between_facts() -> None:
    """A label stays with its value, and what tells itself has none."""
    columns = ("tensor", "change", "new bytes", "old bytes")
    table = grid_table(columns, [("a" * 25, "changed", "12 kB", "13 kB")], telling=("change",))
    out = io.StringIO()
    Console(file=out, width=34).print(table)
    assert out.getvalue().splitlines() == [
        "tensor", "a" * 25, "  changed, new bytes 12 kB,", "  old bytes 13 kB"
    ]  # fmt: skip


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_recipes_are_readable_at_any_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of ``edgekit recipes`` is too long, none holds a single letter."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [line.strip() for line in CliRunner().invoke(recipes).output.splitlines()]
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if len(line) == 1]
    assert any("deepseek-coder-7b-instruct-v1.5" in line for line in lines)
    assert len(lines) < 4 * (len(PUBLISHED) + len(shipped_recipes()))
