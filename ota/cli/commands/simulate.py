"""``edgekit-fleet simulate``: a fleet that is not there, in some processes.

What runs is the device's own code (``device/simulator``), in processes of its own: this package and
the device's do not import each other.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Any, cast

import click

from edgekit.errors import FleetError, MissingExtraError

NEEDED = ("cryptography", "paho")
"""Packages of the extra ``telemetry`` that the simulator cannot do without."""
DEVICES_A_PROCESS = 250
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_STOP_S = 60.0


@click.command()
@click.option("--broker", required=True, metavar="HOST:PORT", help="As its certificate names it.")
@click.option("--ca", type=_FILE, required=True, help="Authorities of the broker's certificate.")
@click.option(
    "--certificates", type=_FOLDER, required=True, help="Folder of NAME.pem and NAME-key.pem."
)
@click.option(
    "--make-certificates",
    type=_FILE,
    metavar="CA",
    help="Make those that lack, signed by a PEM file of certificate and key.",
)
@click.option("--rings", type=_FOLDER, required=True, help="Folder of rings; those there go on.")
@click.option("--devices", type=click.IntRange(1, 100_000), default=1, show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(1, 1000),
    help=f"By default one for {DEVICES_A_PROCESS} devices.",
)
@click.option("--tenant", default="sim", show_default=True)
@click.option("--prefix", default="d", show_default=True, help="What devices' names begin with.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Device s in a second.")
@click.option("--sample-s", type=float, default=10.0, show_default=True)
@click.option("--batch-s", type=float, default=600.0, show_default=True)
@click.option("--keepalive-s", type=int, default=240, show_default=True)
@click.option("--outages", type=float, default=0.0, show_default=True, help="Share of time.")
@click.option("--outage-s", type=float, default=120.0, show_default=True, help="Mean length.")
@click.option("--spread-s", type=float, default=60.0, show_default=True, help="Of the start.")
@click.option("--herd", is_flag=True, help="Start all at once.")
@click.option("--spells-s", type=float, default=14_400.0, show_default=True, help="Between alarms.")
@click.option("--promises", type=_FILE, help="File for every row that a ring has taken.")
@click.option("--drain", is_flag=True, help="No new samples; end once all rings are empty.")
@click.option("--duration-s", type=float, help="In real seconds; by default until SIGTERM.")
def command(
    *, devices: int, processes: int | None, herd: bool, drain: bool, **options: Any
) -> None:
    """Run made-up devices against a real broker, and print what they did.

    Each is the agent's telemetry: a ring, sensors that make their readings up, alarms, a session
    over TLS. Times are the device's own unless it says otherwise; docs/fleet.md has more.
    """
    if any(find_spec(name) is None for name in NEEDED):
        raise MissingExtraError("edgekit-fleet simulate", "telemetry")
    if herd:
        options["spread_s"] = 0.0
    count = min(processes or math.ceil(devices / DEVICES_A_PROCESS), devices)
    passed = [
        part
        for name, value in options.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    if drain:
        passed.append("--drain")
    with _running(count, devices, passed) as running:
        reports = _reports(running)
    click.echo(json.dumps({"processes": count, **_summed(reports)}))


@contextlib.contextmanager
def _running(
    count: int, devices: int, passed: Sequence[str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the processes; SIGTERM and SIGINT end them, and so does the end of this one."""
    running: list[subprocess.Popen[str]] = []

    def end(_number: int = 0, _frame: FrameType | None = None) -> None:
        for process in running:
            process.terminate()

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        for index in range(count):
            first, last = index * devices // count, (index + 1) * devices // count
            shares = ["--first", str(first), "--devices", str(last - first), "--while-stdin"]
            command = [sys.executable, "-m", "device.simulator", *shares, *passed]
            running.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
            )
        yield running
    finally:
        end()
        for process in running:
            _close(process)
        for one, handler in before.items():
            signal.signal(one, handler)


def _close(process: subprocess.Popen[str]) -> None:
    """Wait for a process's end, and help where it does not come."""
    with process:  # closes its pipes
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _reports(running: Sequence[subprocess.Popen[str]]) -> list[dict[str, int]]:
    """Wait for all; return what they print.

    Raises:
        FleetError: One failed; the others are stopped.
    """
    said: list[str] = [""] * len(running)

    def listen(index: int) -> None:
        # Not communicate(): it would close standard input, which ends the process.
        said[index] = cast("IO[str]", running[index].stdout).read()
        if running[index].wait() != 0:
            for other in running:
                other.terminate()

    threads = [threading.Thread(target=listen, args=(index,)) for index in range(len(running))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [process.returncode for process in running if process.returncode != 0]
    if failed:
        raise FleetError(
            f"{len(failed)} of {len(running)} processes of the simulation failed, code {failed[0]}",
            "What they printed above says why",
        )
    return [json.loads(text.splitlines()[-1]) for text in said]


def _summed(reports: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sum of reports; of how late a station was polled, the most."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report)
    return {**total, "late_ms": max(report["late_ms"] for report in reports)}
