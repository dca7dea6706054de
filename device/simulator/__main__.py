"""``python -m device.simulator``: one process of a simulated fleet.

``edgekit-fleet simulate`` starts several. Ended by SIGTERM, SIGINT or ``--duration-s`` it says
goodbye for its devices and prints what they did, a JSON object on a line. Exit codes are
``edgekit``'s (``docs/cli.md``).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, EdgekitError, MissingExtraError

_STACK_BYTES = 512 * 1024
"""Of a connection's thread: hundreds of the usual 8 MiB fill the address space for nothing."""


def main(arguments: list[str] | None = None) -> int:
    """Run a simulation; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log.upper(), format="%(levelname)s %(name)s: %(message)s")
    threading.stack_size(_STACK_BYTES)
    stopping = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stopping.set())
    if options.while_stdin:
        threading.Thread(target=_stop_at_end, args=(stopping,), daemon=True).start()
    try:
        report = _run(options, stopping)
    except EdgekitError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's
        return error.exit_code
    print(json.dumps(report), flush=True)  # noqa: T201 - a command's
    return 0


def _run(options: argparse.Namespace, stopping: threading.Event) -> dict[str, int]:
    """Run until stopped; return the report.

    Raises:
        EdgekitError: It cannot begin, or a device cannot start.
    """
    try:
        from device.simulator.certificates import Authority  # noqa: PLC0415 - may be missing
        from device.simulator.clock import open_clock  # noqa: PLC0415
        from device.simulator.fleet import Fleet  # noqa: PLC0415
        from edgekit.batch_encoding import compress  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("The simulator", "telemetry") from error
    settings = _settings(options)
    compress(b"", settings.encoding)
    clock = open_clock(settings.rings, settings.speed)
    if options.make_certificates is not None:
        devices = map(settings.identity, settings.numbers)
        Authority(options.make_certificates).issue(settings.certificates, devices)
    fleet = Fleet(settings, clock)
    try:
        fleet.run(stopping, options.duration_s)
    finally:
        report = fleet.close()
    return report


def _settings(options: argparse.Namespace) -> Any:
    from device.simulator.outages import OutageRates  # noqa: PLC0415 - paho may be missing
    from device.simulator.settings import Settings  # noqa: PLC0415

    host, _, port = options.broker.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal():
        raise ConfigError(f"{options.broker!a} is no broker", "Write HOST:PORT")
    told = {name: getattr(options, name) for name in _PASSED}
    outages = OutageRates(options.outages, options.outage_s)
    return Settings(broker=host, port=int(port), outages=outages, **told)


_PASSED = (
    "ca", "certificates", "rings", "first", "devices", "tenant", "prefix", "seed", "speed",
    "sample_s", "batch_s", "keepalive_s", "encoding", "daily_bytes", "spread_s", "spells_s",
    "drain", "promises",
)  # fmt: skip


def _stop_at_end(stopping: threading.Event) -> None:
    """Stop when whoever started this is gone, however it went."""
    while os.read(0, 4096):  # sys.stdin's lock would be held when the interpreter ends
        pass
    stopping.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m device.simulator",
        description="Run many devices' telemetry in one process; docs/fleet.md says more.",
    )
    add = parser.add_argument
    add("--broker", required=True, metavar="HOST:PORT", help="as its certificate names it")
    add("--ca", type=Path, required=True, help="PEM: authorities of the broker's certificate")
    add("--certificates", type=Path, required=True, help="folder of NAME.pem and NAME-key.pem")
    add("--make-certificates", type=Path, metavar="CA", help="make those that lack; PEM with key")
    add("--rings", type=Path, required=True, help="folder of the rings; those there go on")
    add("--first", type=int, default=0, help="number of the first device")
    add("--devices", type=int, default=1)
    add("--tenant", default="sim")
    add("--prefix", default="d", help="what devices' names begin with")
    add("--seed", type=int, default=0)
    add("--speed", type=float, default=1.0, help="device seconds in a real second")
    add("--sample-s", type=float, default=10.0)
    add("--batch-s", type=float, default=600.0)
    add("--keepalive-s", type=int, default=240)
    add("--encoding", default="zstd-ek1")
    add("--daily-bytes", type=int, default=4_000_000)
    add("--outages", type=float, default=0.0, help="share of time without a network")
    add("--outage-s", type=float, default=120.0, help="mean length of an outage")
    add("--spread-s", type=float, default=60.0, help="starts are spread over; 0 is a herd")
    add("--spells-s", type=float, default=14_400.0, help="between what raises alarms, on average")
    add("--promises", type=Path, help="file for every row that a ring has taken")
    add("--drain", action="store_true", help="no new samples; end once all rings are empty")
    add("--duration-s", type=float, default=float("inf"), help="real seconds")
    add("--while-stdin", action="store_true", help="end when standard input does")
    add("--log", choices=("error", "warning", "info", "debug"), default="error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
