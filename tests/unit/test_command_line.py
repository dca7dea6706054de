"""The command line's edge: every way to fail is a line, an exit code and, on request, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from edgekit.cli.commands import recipes
from edgekit.cli.main import COMMANDS, TRACEBACK_VARIABLE, cli, main
from edgekit.cli.render import print_json
from edgekit.errors import (
    BuildInterrupted,
    BundleError,
    CheckpointError,
    EdgekitError,
    GraphError,
    UnsupportedModelError,
)

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "error.schema.json").read_text())


def fail(
    capsys: pytest.CaptureFixture[str], code: int, *arguments: str, kind: str
) -> tuple[dict[str, object], str]:
    """Run with --json; returns the error's JSON and what was printed on stderr."""
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--json"])
    output = capsys.readouterr()
    assert caught.value.code == code, output
    document = json.loads(output.out)
    jsonschema.validate(document, SCHEMA)
    error: dict[str, object] = document["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)
    assert "Traceback" not in output.err
    return error, output.err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let ``edgekit recipes`` raise."""

    def fake(*_: object) -> None:
        raise error

    monkeypatch.setattr(recipes, "print_json", fake)
    monkeypatch.setattr(recipes, "console", fake)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "m", "--target", "moon"), "'moon' is not one of"),
        (("build", "m"), "Missing option '--target'"),
        (("build", "m", "--target", "cpu", "--max-context", "5"), "5 is not in the range x>=32"),
        (("run", "b"), "--json needs a PROMPT"),
        (("recipes", "--nothing"), "--nothing"),
        (("bild",), "No such command 'bild'. Did you mean 'build'?"),
        (("nothing-like-it",), "No such command 'nothing-like-it'."),
        (("build", "m", "--target", "cpu", "--optimum-python", "p"), "without --exporter optimum"),
        (("eval", "b", "--text", "t", "--limit", "8"), "--limit does nothing without --data"),
        (("eval", "b", "--data", "d", "--text-tokens", "512"), "does nothing without --text"),
        (("eval", "b", "--data", "d", "--window", "512"), "without --text or --reference"),
        (("inspect", ".", "--revision", "main"), "--revision does nothing with a folder"),
        (("verify", "b", "--no-run", "--provider", "cpu"), "does nothing with --no-run"),
    ],
)
def test_wrong_usage_is_json_too(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    """A usage error has exit code 2, its usual text on stderr and a JSON document on stdout."""
    error, said = fail(capsys, 2, *arguments, kind="UsageError")
    assert message in str(error["message"])
    assert "--help" in str(error["remedy"])
    assert message in said


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_examples_in_help_stay_one_a_line(name: str) -> None:
    """Help texts show their examples as lines to copy, and no marks meant for click."""
    result = CliRunner().invoke(cli, [name, "--help"] if name else ["--help"])
    assert (result.exit_code, "\b" in result.output, "\\b" in result.output) == (0, False, False)
    examples = {
        "": '  edgekit run DeepSeek-R1-Distill-Qwen-1.5B.orin.bundle "What is 12 * 34?"',
        "build": "  edgekit build ./checkpoint --target cpu --recipe w8a16 --out model.bundle",
        "run": '  edgekit run model.bundle "What is 58 + 67?" --temperature 0',
        "eval": "  edgekit eval model.bundle --text book.txt --reference ./checkpoint",
    }
    assert examples.get(name, "") in result.output.splitlines()


def test_an_option_of_the_environment_is_never_idle(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EDGEKIT_OPTIMUM_PYTHON, set for other builds, does not stop a native one."""
    monkeypatch.setenv("EDGEKIT_OPTIMUM_PYTHON", "/nowhere/python")
    error, _ = fail(capsys, 4, "build", "./nowhere", "--target", "cpu", kind="CheckpointError")
    assert "./nowhere is neither a folder nor a hub id" in str(error["message"])


@pytest.mark.parametrize("command", ["build", "plan"])
def test_an_empty_recipe_is_none_of_them(
    capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path
) -> None:
    """``--recipe "$UNSET"`` is refused, and does not quietly become the default."""
    (tmp_path / "config.json").write_text("{}")
    arguments = (command, str(tmp_path), "--target", "orin", "--recipe", "")
    error, _ = fail(capsys, 3, *arguments, kind="RecipeError")
    assert str(error["message"]).startswith("there is no recipe named ''")


def test_internal_error_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of edgekit's own names its kind and place; the traceback comes on request."""
    raising(monkeypatch, ZeroDivisionError("first\nsecond " + "x" * 9000))
    error, said = fail(capsys, 1, "recipes", kind="InternalError")
    message = str(error["message"])
    assert message.startswith("internal error, ZeroDivisionError: first second xxx")
    assert "recipes.py:" in message
    assert len(message) < 600
    assert said.count("\n") == 1
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(SystemExit) as caught:
        main(["recipes"])
    assert caught.value.code == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "resumes"), [(KeyboardInterrupt(), False),
                                                (BuildInterrupted(), True)])  # fmt: skip
def test_interruption_promises_only_what_holds(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: KeyboardInterrupt,
    *,
    resumes: bool,
) -> None:
    """Only an interrupted build that kept finished work says that it takes it up."""
    raising(monkeypatch, error)
    body, said = fail(capsys, 130, "recipes", kind="Interrupted")
    assert ("takes up where it stopped" in str(body["remedy"])) is resumes
    assert ("takes up where it stopped" in said) is resumes
    assert said.strip().startswith("interrupted")


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("module", ["signal", "edgekit.cli.main", "click", "rich.console"])
def test_interruption_while_python_imports(module: str, *, as_json: bool) -> None:
    """Ctrl-C before the command line is imported ends it with 130 and no traceback."""
    script = (
        "import os, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.modules.pop('signal', None)\n"
        "from edgekit.cli.entry import main\n"
        "main()\n"
    )
    flags = ["--json"] if as_json else []
    result = subprocess.run(
        [sys.executable, "-c", script, "recipes", *flags],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "interrupted\n")
    if as_json:
        jsonschema.validate(json.loads(result.stdout), SCHEMA)
    else:
        assert result.stdout == ""


def test_entry_imports_nothing_before_it_can_be_interrupted() -> None:
    """Importing the entry point loads no module but edgekit's own three."""
    script = (
        "import sys; before = set(sys.modules); import edgekit.cli.entry\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["edgekit", "edgekit.cli", "edgekit.cli.entry"]


@pytest.mark.parametrize("moment_ms", [5, 15, 20, 25, 30, 40, 60, 80, 120, 160, 200])
def test_interruption_at_any_moment_shows_no_frame_of_ours(moment_ms: int) -> None:
    """Ctrl-C ends a start quietly; only Python itself, before our first line, may complain."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", "recipes"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(moment_ms / 1000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert str(ROOT / "edgekit") not in errors
    if "Traceback" not in errors:
        assert process.returncode in {0, 130, -signal.SIGINT}
        assert errors.strip() in {"", "interrupted"}


@pytest.mark.parametrize("family", [GraphError, BundleError, CheckpointError])
def test_a_family_has_a_usual_remedy(family: type[EdgekitError]) -> None:
    """What is wrong in a file, a bundle or a graph is never left without a way out."""
    assert family("x is wrong").remedy
    assert family("x is wrong", "Do this").remedy == "Do this"
    assert UnsupportedModelError("x is wrong").remedy == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(value: float) -> None:
    """NaN and infinity are not JSON: no document holds them."""
    with pytest.raises(ValueError, match="JSON"):
        print_json({"figure": value})


def edgekit(arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "edgekit", *arguments.split()]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60, **options)


@pytest.mark.parametrize("arguments", ["recipes", "recipes --json", "nothing-like-it --json"])
def test_a_full_disk_behind_stdout_is_one_line(arguments: str) -> None:
    """What cannot be written is told on stderr: no traceback, no fault of edgekit's own."""
    with Path("/dev/full").open("wb") as full:
        done = edgekit(arguments, stdout=full)
    said = done.stderr.decode()
    assert "Traceback" not in said
    if arguments.startswith("recipes"):
        assert done.returncode == 13
        assert said.startswith("error: standard output cannot be written: No space left on device.")
    else:
        assert done.returncode == 2
        assert "No such command" in said


@pytest.mark.parametrize("arguments", ["recipes", "recipes --json"])
def test_a_reader_that_is_gone_is_no_error(arguments: str) -> None:
    """A table and a document that nobody reads to its end, as in ``| head``, exit with 0."""
    read, write = os.pipe()
    os.close(read)
    done = edgekit(arguments, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_unicode_is_written_to() -> None:
    """Signs that an encoding lacks are replaced in tables, and escaped in JSON."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    table = edgekit("plan R1-Distill-Qwen-7B --target orin", stdout=-1, env=environment)
    assert (table.returncode, b"J/token ?" in table.stdout) == (0, True)
    failed = edgekit("build modèle --target cpu --json", stdout=-1, env=environment)
    assert json.loads(failed.stdout)["error"]["message"].startswith("modèle is neither")
