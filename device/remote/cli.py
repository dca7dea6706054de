"""``python -m device config show|forget`` and ``python -m device diagnostics --out FILE``.

For whoever stands at the device, agent running or not. What the running agent alone knows (its
readings, the last of a log that goes to the journal of another user) is missing in such a bundle.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from device.agent.config import DEFAULT_PATH, AgentConfig, read_config
from device.remote.effective import Effective, merge
from edgekit.errors import ConfigError, EdgekitError, MissingExtraError, StorageError


def run_tool(arguments: list[str]) -> int:
    """Run one of the two; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = read_config(options.config)
        work: Callable[[AgentConfig, argparse.Namespace], None] = options.work
        try:
            work(config, options)
        except ModuleNotFoundError as error:
            raise MissingExtraError("Remote configuration", "serve,telemetry") from error
    except EdgekitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m device")
    tools = parser.add_subparsers(required=True)
    config = tools.add_parser("config", help="what holds, the file's and what came from afar")
    actions = config.add_subparsers(required=True)
    show = actions.add_parser("show", help="print what holds, and because of what")
    show.set_defaults(work=_show)
    forget = actions.add_parser(
        "forget", help="hold nothing that came from afar; stop the agent before"
    )
    forget.set_defaults(work=_forget)
    diagnostics = tools.add_parser("diagnostics", help="write a redacted diagnostic bundle")
    diagnostics.add_argument("--out", type=Path, required=True, help="file to write, .tar.zst")
    diagnostics.set_defaults(work=_diagnostics)
    for tool in (show, forget, diagnostics):
        tool.add_argument(
            "--config", type=Path, default=DEFAULT_PATH, help=f"TOML file (default: {DEFAULT_PATH})"
        )
    return parser


def _show(config: AgentConfig, options: argparse.Namespace) -> None:
    del options
    from device.remote.assembly import local_of  # noqa: PLC0415 - packages of extras

    told: Mapping[str, Any]
    if config.fleet is None:
        told = {"effective": _holding(config, merge(local_of(config), []))}
    else:
        remote = _remote(config)
        told = {
            "device": config.fleet.identity.path,
            "effective": _holding(config, remote.effective),
            "documents": remote.describe(),
            "told": remote.details(),
        }
    print(json.dumps(told, indent=2))  # noqa: T201 - a command line


def _holding(config: AgentConfig, effective: Effective) -> Mapping[str, Any]:
    """Return what holds, the owner's words where no document has others."""
    from device.remote.assembly import tuning_of  # noqa: PLC0415
    from device.remote.effective import TELEMETRY, describe  # noqa: PLC0415

    told = describe(effective)
    if config.telemetry is None:
        return told
    tuning = tuning_of(effective, config.telemetry.tuning)
    return {**told, **{name: getattr(tuning, name) for name in TELEMETRY}}


def _forget(config: AgentConfig, options: argparse.Namespace) -> None:
    del options
    if config.fleet is None:
        raise ConfigError("there is no table [fleet]", "Nothing came from afar")
    _remote(config).forget()


def _diagnostics(config: AgentConfig, options: argparse.Namespace) -> None:
    from device.diagnostics.bundle import pack  # noqa: PLC0415
    from device.remote.assembly import bundle_parts  # noqa: PLC0415
    from device.telemetry.clock import SystemClock  # noqa: PLC0415
    from edgekit.bundle.storage import write_atomic  # noqa: PLC0415

    def readings() -> Mapping[str, Any]:
        raise StorageError("only the running agent has readings", "Ask it by a command")

    remote = None if config.fleet is None else _remote(config)
    parts = bundle_parts(config, lambda: list(_log_of(config)), readings, remote)
    write_atomic(options.out, pack(parts, SystemClock().time_ms()))


def _remote(config: AgentConfig) -> Any:
    """Return what was taken up; nothing is let hold by it, the agent does that."""
    from device.remote.assembly import local_of, make_remote  # noqa: PLC0415
    from device.telemetry.clock import SystemClock  # noqa: PLC0415

    def hold(effective: Effective) -> None:
        del effective

    if config.fleet is None:
        raise ConfigError("there is no table [fleet]")
    return make_remote(config.fleet, local_of(config), SystemClock(), hold)


def _log_of(config: AgentConfig) -> Iterable[str]:
    """Return the last of the agent's log, wherever it is."""
    from device.diagnostics.sources import file_tail, journal_tail  # noqa: PLC0415

    if config.log == "off":
        raise StorageError("the agent's log is off", "Set log of [serve]")
    return journal_tail() if config.log == "stdout" else file_tail(Path(config.log))
