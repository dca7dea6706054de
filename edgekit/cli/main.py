"""The command group, lazy loading of commands, errors to exit codes.

Exit codes are documented in ``docs/cli.md``: 0 success, 1 a fault of edgekit's own, 2 usage, 130
interrupted, and the ``exit_code`` of the :class:`~edgekit.errors.EdgekitError` family otherwise.
With ``--json`` each is a JSON document on stdout, too.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from types import FrameType
from typing import Any, TextIO

import click

from edgekit import __version__
from edgekit.cli.render import ReaderGoneError, error_console, is_utf8
from edgekit.errors import INTERRUPTED_EXIT_CODE, BuildInterrupted, EdgekitError

TRACEBACK_VARIABLE = "EDGEKIT_TRACEBACK"
"""Set, an internal error prints its traceback before its line."""
LONGEST_MESSAGE = 400

COMMANDS = {
    "build": "Quantize, export, check and bundle a checkpoint.",
    "run": "Chat with a bundle in the terminal.",
    "inspect": "Show what a checkpoint or a bundle holds.",
    "serve": "Serve a bundle behind OpenAI's API.",
    "bench": "Measure how fast an OpenAI-compatible server answers.",
    "verify": "Check a bundle: digests, graph, golden prompts.",
    "eval": "Measure a bundle's quality on data.",
    "engine": "Build a bundle's TensorRT engine for this machine.",
    "export": "Write a bundle's weights for another engine.",
    "diff": "Show what changed between two bundles and what a device would fetch.",
    "plan": "Project memory, rates, energy and cost before a build.",
    "recipes": "List the recipes and the published models.",
    "doctor": "Show what this machine can do and what is missing.",
}


def _keep_examples(command: click.Command) -> None:
    r"""Let a help text's examples stay one a line.

    What says so to click is a line of the one character ``\b``; docstrings are raw, and write two.
    """
    if command.help:
        command.help = command.help.replace("\\b\n", "\b\n")


class LazyGroup(click.Group):
    """Imports a command's module only when it runs, so ``--help`` stays instant.

    Args:
        args: Of click's group.
        listed: Name of each command to its help line, in the order a new user meets them.
        package: Whose modules have the commands' names, each with its ``command``.
        kwargs: Of click's group.
    """

    def __init__(self, *args: Any, listed: Mapping[str, str], package: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listed, self._package = listed, package
        _keep_examples(self)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order a new user meets them."""
        del ctx
        return list(self._listed)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of that name and return its ``command``."""
        del ctx
        if cmd_name not in self._listed:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name}")
        command: click.Command = module.command
        _keep_examples(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is nearly one's is told so."""
        if args[0] not in self._listed and not args[0].startswith("-"):
            import difflib  # noqa: PLC0415 - for this error only

            near = difflib.get_close_matches(args[0], self._listed, 1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(self._listed.items()))


@click.group(
    cls=LazyGroup,
    listed=COMMANDS,
    package="edgekit.cli.commands",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, package_name="edgekit")
def cli() -> None:
    r"""Take a DeepSeek checkpoint under 13 B parameters to a Jetson AGX Orin.

    \b
    edgekit build deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --target orin
    edgekit run DeepSeek-R1-Distill-Qwen-1.5B.orin.bundle "What is 12 * 34?"
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    run_group(cli, "edgekit", args)


def run_group(group: click.Group, name: str, args: list[str] | None = None) -> None:
    """Run a command line and exit; errors are told as ``docs/cli.md`` says.

    Args:
        group: The commands.
        name: Of the program.
        args: Its arguments; None for the process's.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] if args is None else args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not is_utf8(stream):
            stream.reconfigure(errors="replace")  # a sign that a terminal lacks is no fault
    try:
        code = _run(group, name, arguments, as_json="--json" in arguments)
    except (
        BrokenPipeError,
        ReaderGoneError,
    ):  # the reader of our output is gone: nothing to tell it
        _drop_output(sys.stdout, sys.stderr)
        code = 0
    sys.exit(code)


def _drop_output(*streams: TextIO) -> None:
    """Let what is still to be written go nowhere: Python writes it when it ends, and would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no file
            os.dup2(nowhere, stream.fileno())


def _run(group: click.Group, name: str, arguments: list[str], *, as_json: bool) -> int:
    """Run a command; returns its exit code, every error explained."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # until here, entry.py's
        code = group.main(arguments, prog_name=name, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        # click turns a KeyboardInterrupt into its Abort.
        resumes = isinstance(error.__cause__ or error, BuildInterrupted)
        return _explain_interruption(resumes=resumes, as_json=as_json)
    except click.ClickException as error:
        if as_json:
            usage = _usage(error, name)
            _print_error("UsageError", error.format_message(), usage, error.exit_code)
        error.show()
        return error.exit_code
    except EdgekitError as error:
        kind = type(error).__name__
        return _explain(kind, error.message, error.remedy, error.exit_code, as_json=as_json)
    except (BrokenPipeError, ReaderGoneError):
        raise
    except Exception as error:  # noqa: BLE001 - the last resort: a line, not a traceback
        return _explain_fault(error, as_json=as_json)
    return code if isinstance(code, int) else 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


def _explain_interruption(*, resumes: bool, as_json: bool) -> int:
    remedy = "The same command takes up where it stopped" if resumes else ""
    if as_json:
        _print_error("Interrupted", "interrupted", remedy, INTERRUPTED_EXIT_CODE)
    line = "interrupted; the same command takes up where it stopped" if resumes else "interrupted"
    error_console().print(line, style="yellow")
    return INTERRUPTED_EXIT_CODE


def _explain_fault(error: Exception, *, as_json: bool) -> int:
    """Explain an error that edgekit should have foreseen."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_MESSAGE]
    own = [
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "edgekit" in frame.filename or "/ota/" in frame.filename
    ]
    message = f"internal error, {said} (at {own[-1]})" if own else f"internal error, {said}"
    remedy = f"Please report it, with what {TRACEBACK_VARIABLE}=1 prints"
    return _explain("InternalError", message, remedy, 1, as_json=as_json)


def _explain(kind: str, message: str, remedy: str, exit_code: int, *, as_json: bool) -> int:
    if as_json:
        _print_error(kind, message, remedy, exit_code)
    line = f"{message}. {remedy}" if remedy else message
    error_console().print(f"[bold red]error:[/] {_escape(line)}", soft_wrap=True)
    return exit_code


def _print_error(kind: str, message: str, remedy: str, exit_code: int) -> None:
    """Print an error as JSON on stdout (``docs/schemas/error.schema.json``)."""
    body = {"kind": kind, "message": message, "remedy": remedy, "exit_code": exit_code}
    try:
        click.echo(json.dumps({"error": body}, ensure_ascii=not is_utf8(sys.stdout)))
    except OSError:  # nobody can read it there; the line on stderr is still to come
        _drop_output(sys.stdout)


def _usage(error: click.ClickException, name: str) -> str:
    """Return where a usage error's command explains itself."""
    context = getattr(error, "ctx", None)
    return f"See {context.command_path} --help" if context else f"See {name} --help"


def _escape(text: str) -> str:
    """Keep rich from reading square brackets of a message as markup."""
    return text.replace("[", r"\[")
