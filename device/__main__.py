"""``python -m device``: the agent.

Exit codes are ``edgekit``'s (``docs/cli.md``): 0 after SIGTERM, 15 for a wrong configuration.
"""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

from device.agent.config import DEFAULT_PATH, AgentConfig, read_config
from edgekit.errors import EdgekitError, MissingExtraError

TOOLS = ("config", "diagnostics")
"""Words that make it another program than the agent."""


def main(arguments: list[str] | None = None) -> int:
    """Run the agent; returns its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nothing is loaded yet that could be renewed
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in TOOLS:
        from device.remote.cli import run_tool  # noqa: PLC0415 - the agent needs it not

        return run_tool(given)
    options = _parser().parse_args(given)
    try:
        config = _config(options)
        if options.health:
            from device.agent.health import ask_health  # noqa: PLC0415 - the agent needs it not

            return ask_health(config)
        return _run(config)
    except EdgekitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the journal's
        return error.exit_code
    except KeyboardInterrupt:
        return 0


def _run(config: AgentConfig) -> int:
    try:
        from device.agent.agent import Agent  # noqa: PLC0415 - its packages may be missing
        from device.agent.server import listen  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("The agent", "serve") from error

    listener = listen(config.host, config.port)
    return Agent(config).run(listener)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m device",
        description="Serve the device's model behind OpenAI's API, and change it when told to.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help=f"TOML file (default: {DEFAULT_PATH} if there is one); docs/agent.md has its keys",
    )
    parser.add_argument("--bundle", type=Path, help="bundle, or a link to it")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument(
        "--health",
        action="store_true",
        help="ask the running agent's /healthz and exit with 0 or 1",
    )
    return parser


def _config(options: argparse.Namespace) -> AgentConfig:
    """Return the file's configuration, changed by what the command line says."""
    config = AgentConfig()
    if options.config is not None:
        config = read_config(options.config)
    elif DEFAULT_PATH.exists():
        config = read_config(DEFAULT_PATH)
    given = {name: getattr(options, name) for name in ("bundle", "host", "port")}
    return replace(config, **{name: value for name, value in given.items() if value is not None})


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
