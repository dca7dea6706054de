"""Command lines that the documents quote are ones that this release takes, up to their options."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from device import __main__ as agent
from device.remote import cli as tools
from edgekit.cli.main import cli as edgekit
from ota.cli.main import cli as fleet

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # of releases before this one
)
AGENT = "python -m device"
GROUPS: Mapping[str, click.Command] = {"edgekit": edgekit, "edgekit-fleet": fleet}


def quoted(text: str) -> Iterator[str]:
    """Yield the command lines of edgekit's programs: of code blocks, and between backticks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose)]
    for line in (*lines, *spans):
        found = re.match(rf"\s*(?:[\w/.]+/)?((?:edgekit-fleet|edgekit|{AGENT})(?: .*|$))", line)
        if found:
            yield found[1]


def unknown_to_click(words: list[str], command: click.Command) -> str | None:
    """Return the first word that is no command or option; None if there is none."""
    context = click.Context(command)
    words = list(words)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
        found = command.get_command(context, words[0])
        if found is None:
            return words[0]
        command, context, words = found, click.Context(found, parent=context), words[1:]
    known = {option for one in command.get_params(context) for option in one.opts}
    known |= {option for one in command.get_params(context) for option in one.secondary_opts}
    return next((option for option in options(words) if option not in known), None)


def unknown_to_argparse(words: list[str]) -> str | None:
    """Return the first word that ``python -m device`` does not know; None if there is none."""
    parser: argparse.ArgumentParser = agent._parser()
    if words and words[0] in agent.TOOLS:
        parser = tools._parser()
    while words and re.fullmatch(r"[a-z]+", words[0]):
        choices = commands_of(parser)
        if words[0] not in choices:
            return words[0]
        parser, words = choices[words[0]], words[1:]
    known = parser._option_string_actions
    return next((option for option in options(words) if option not in known), None)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, Any]:
    return {
        name: command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, command in action.choices.items()
    }


def options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]


def unknown(line: str) -> str | None:
    """Return what a command line has that its program does not; None if it knows all."""
    end = re.split(r" [|;>]|&$|&&", line)[0]
    words = shlex.split(end, comments=True)
    if end.startswith(AGENT):
        return unknown_to_argparse(words[3:])
    return unknown_to_click(words[1:], GROUPS[words[0]])


def test_quoted_commands_exist() -> None:
    """Every command and option that a document shows is one of this release."""
    wrong, seen = [], dict.fromkeys((*GROUPS, AGENT), 0)
    for document in DOCUMENTS:
        for line in quoted(document.read_text()):
            program = AGENT if line.startswith(AGENT) else line.split()[0]
            seen[program] += 1
            if (word := unknown(line)) is not None:
                wrong.append(f"{document.relative_to(ROOT)}: {line}: {word}")
    assert wrong == []
    assert min(seen.values()) > 5, seen


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("edgekit-fleet stor migrate", "stor"),
        ("edgekit-fleet store migrat --json", "migrat"),
        ("edgekit-fleet ingest --brokers mqtt://localhost", "--brokers"),
        ("edgekit build MODEL --targets orin", "--targets"),
        ("python -m device diagnostics --output x", "--output"),
        ("python -m device config hide", "hide"),
        ("python -m device --confg x", "--confg"),
        ("edgekit-fleet ingest --broker mqtt://localhost  # --comment", None),
    ],
)
def test_a_wrong_word_is_found(line: str, word: str | None) -> None:
    """What the test above looks for it finds."""
    assert unknown(line) == word


def test_every_fleet_command_is_documented() -> None:
    """docs/fleet.md has a row for every command of edgekit-fleet, and the README names each."""
    guide, readme = (ROOT / "docs/fleet.md").read_text(), (ROOT / "README.md").read_text()
    assert isinstance(fleet, click.Group)
    for name in fleet.list_commands(click.Context(fleet)):
        assert f"| `{name}" in guide, name
        assert f"edgekit-fleet {name}" in readme, name
