"""Entry point: the command group, lazy loading of commands, errors to exit codes.

Exit codes are documented in ``docs/cli.md``: 0 success, 2 usage, 130 interrupted, and the
``exit_code`` of the :class:`~edgekit.errors.EdgekitError` family otherwise.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from types import FrameType
from typing import Any

import click

from edgekit import __version__
from edgekit.cli.render import error_console
from edgekit.errors import INTERRUPTED_EXIT_CODE, EdgekitError

COMMANDS = {
    "build": "Quantize, export, check and bundle a checkpoint.",
    "run": "Chat with a bundle in the terminal.",
    "inspect": "Show what a checkpoint or a bundle holds.",
    "verify": "Check a bundle: digests, graph, golden prompts.",
    "eval": "Measure a bundle's quality on data.",
    "diff": "Show what changed between two bundles and what a device would fetch.",
    "recipes": "List the recipes and the published models.",
    "doctor": "Show what this machine can do and what is missing.",
}


class LazyGroup(click.Group):
    """Imports a command's module only when it runs, so ``--help`` stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order a new user meets them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import ``edgekit.cli.commands.<name>`` and return its ``command``."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgekit.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="edgekit")
def cli() -> None:
    r"""Take a DeepSeek checkpoint under 13 B parameters to a Jetson AGX Orin.

    \b
    edgekit build deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --target orin
    edgekit run DeepSeek-R1-Distill-Qwen-1.5B.orin.bundle "What is 12 * 34?"
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = sys.argv[1:] if args is None else args
    try:
        code = cli.main(arguments, prog_name="edgekit", standalone_mode=False)
    except click.exceptions.Abort:
        _explain_interruption()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _explain_interruption()
    except EdgekitError as error:
        _explain(error, as_json="--json" in arguments)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone: nothing to tell it
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


def _explain_interruption() -> None:
    error_console().print("interrupted; the same command takes up where it stopped", style="yellow")
    sys.exit(INTERRUPTED_EXIT_CODE)


def _explain(error: EdgekitError, *, as_json: bool) -> None:
    if as_json:
        body: dict[str, Any] = {
            "error": {
                "kind": type(error).__name__,
                "message": error.message,
                "remedy": error.remedy,
                "exit_code": error.exit_code,
            }
        }
        click.echo(json.dumps(body, ensure_ascii=False))
    error_console().print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)


def _escape(text: str) -> str:
    """Keep rich from reading square brackets of a message as markup."""
    return text.replace("[", r"\[")
