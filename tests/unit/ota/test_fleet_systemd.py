"""The cloud's units: systemd takes them, and what they start exists with the options they give."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import click
import pytest

from ota.cli.main import cli

UNITS = Path(str(files("ota") / "systemd"))
SERVICES = sorted(UNITS.glob("*.service"))
DOCS = Path(__file__).parents[3] / "docs/fleet.md"
PROGRAM = "/opt/edgekit-fleet/bin/edgekit-fleet"
ANALYZE = shutil.which("systemd-analyze") or ""


def unit(path: Path) -> configparser.ConfigParser:
    """Return a unit; of keys that stand twice the last one."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(path)
    return parser


def command_of(words: list[str]) -> tuple[click.Command, list[str], list[str]]:
    """Return the command that a line calls, its name in words, and its options."""
    found: click.Command = cli
    context = click.Context(found)
    name: list[str] = []
    while isinstance(found, click.Group):
        inner = found.get_command(context, words[len(name)])
        assert inner is not None, words
        name.append(words[len(name)])
        found = inner
    return found, name, words[len(name) :]


def environment() -> dict[str, str]:
    """Return the variables of the documentation's file."""
    part = DOCS.read_text().partition("# /etc/edgekit-fleet/fleet.env\n")[2].partition("```")[0]
    return dict(re.findall(r"^(\w+)=(.+)$", part, re.MULTILINE))


def variables_of(option: click.Option, name: list[str]) -> set[str]:
    """Return the variables that set an option of a command."""
    own = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    return {*own, "_".join(["EDGEKIT_FLEET", *name, str(option.name)]).upper()}


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_can_run_with_the_documented_file(path: Path) -> None:
    """Its command has every option that it gives, and all that it needs comes from one or other."""
    program, *words = shlex.split(unit(path)["Service"]["ExecStart"])
    assert program == PROGRAM
    command, name, given = command_of(words)
    options = {flag: one for one in command.params for flag in one.opts}
    flags = {word.partition("=")[0] for word in given}
    assert flags <= set(options)
    for option in command.params:
        if option.required and not flags & set(option.opts):
            assert isinstance(option, click.Option)
            assert variables_of(option, name) & set(environment()), option.opts


def test_every_variable_of_the_file_is_an_options() -> None:
    """None is misspelt: click reads variables that it does not know of without a word."""
    known = set[str]()
    for path in SERVICES:
        command, name, _ = command_of(shlex.split(unit(path)["Service"]["ExecStart"])[1:])
        for one in command.params:
            if isinstance(one, click.Option):
                known |= variables_of(one, name)
    assert environment()
    assert set(environment()) <= known


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_is_held_to_its_folder(path: Path) -> None:
    """No root, no capability, one folder to write to; what runs for long comes back."""
    service = unit(path)["Service"]
    assert (service["User"], service["CapabilityBoundingSet"]) == ("edgekit-fleet", "")
    assert (service["ProtectSystem"], service["NoNewPrivileges"]) == ("strict", "yes")
    assert service["StateDirectory"] == "edgekit-fleet"
    assert service["SystemCallFilter"] == "@system-service"
    if service.get("Type") == "oneshot":
        assert "Restart" not in service
    else:
        assert service["Restart"] == "always"
        assert unit(path)["Install"]["WantedBy"] == "multi-user.target"


def test_workers_keep_their_names() -> None:
    """Instances have client ids of their own, and the same ones after a restart."""
    line = unit(UNITS / "edgekit-fleet-ingest@.service")["Service"]["ExecStart"]
    assert "--name=ingest-%i" in line


def test_pruning_is_daily() -> None:
    """Also after the machine was off at its hour."""
    timer = unit(UNITS / "edgekit-fleet-prune.timer")
    assert re.fullmatch(r"\*-\*-\* [\d:]+ UTC", timer["Timer"]["OnCalendar"])
    assert timer["Timer"]["Persistent"] == "yes"
    assert (UNITS / "edgekit-fleet-prune.service").exists()


@pytest.mark.skipif(not ANALYZE, reason="needs systemd's package")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, once there is a program to start."""
    for path in UNITS.iterdir():
        name = path.name.replace("@.", "@1.")
        (tmp_path / name).write_text(path.read_text().replace(PROGRAM, "/bin/true"))
    copies = sorted(tmp_path.iterdir())
    assert len(copies) == 4
    result = subprocess.run(
        [ANALYZE, "verify", "--man=no", *copies], capture_output=True, text=True, check=False
    )
    said = [line for line in result.stderr.splitlines() if "edgekit-fleet" in line]
    assert (result.returncode, said) == (0, []), result.stderr
