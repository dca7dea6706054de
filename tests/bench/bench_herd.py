"""Measures how a fleet comes back when its broker was restarted: connects a second, failures, CPU.

Usage: python tests/bench/bench_herd.py [--devices N] > report.json

Simulated devices (``device/simulator``, processes of 200) are connected with TLS and certificates
of their own to a mosquitto of the shipped configuration; all run on this machine. The broker is
killed (``kill -9``), killed with its database lost, and stopped in order, and started again. A
device is back when its new birth has come to a subscriber. Nothing is sped up: back-off as shipped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_ingest import cpu_s
from mosquitto_broker import Broker
from mqtt_client import Client
from report import machine
from simulated_fleet import SimulatorProcess

from edgekit.contracts.telemetry import Health

PROCESS_DEVICES = 200
PACE = ("--sample-s", "30", "--batch-s", "600", "--spread-s", "30")
UP_S = 120.0
SETTLE_S = 65.0
"""A connection that held for a minute is good: the next back-off begins small again."""
DOWN_S = 1.0
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder that is in memory is what is wanted


class Births:
    """Who is connected, and since when.

    Args:
        broker: Where to listen.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._seen: dict[str, tuple[int, float]] = {}

    def wait(self, devices: int, wait_s: float) -> list[float]:
        """Wait for a newer birth of every device than before; return when they came, in order.

        Raises:
            AssertionError: Some did not come back.
        """
        before = {device: connection for device, (connection, _) in self._seen.items()}
        topic = "ek/+/device/+/status/health"
        client = Client(self._broker.plain_port, f"herd-{time.monotonic_ns()}", [topic])
        client.take = self._take

        def are_back() -> bool:
            newer = (
                name for name, (number, _) in self._seen.items() if number > before.get(name, 0)
            )
            return sum(1 for _ in newer) == devices

        with client:
            client.wait_until(are_back, f"{devices} births", wait_s)
        return sorted(at_s for _, at_s in self._seen.values())

    def _take(self, message: Any) -> None:
        health = Health.from_bytes(message.payload)
        device = message.topic.split("/")[3]
        if health.state == "up" and health.connection > self._seen.get(device, (0, 0.0))[0]:
            self._seen[device] = (health.connection, time.monotonic())


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    arguments = parser.parse_args()
    json.dump({"machine": machine(), **measure(arguments.devices)}, sys.stdout, indent=1)


def measure(devices: int) -> dict[str, Any]:
    """Run the fleet and restart the broker in three ways; return the figures."""
    found: dict[str, Any] = {"devices": devices}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_MEMORY)))
        broker = stack.enter_context(Broker(folder))
        running = [
            stack.enter_context(
                SimulatorProcess(
                    broker,
                    folder,
                    first=first,
                    devices=min(PROCESS_DEVICES, devices - first),
                    options=PACE,
                )
            )
            for first in range(0, devices, PROCESS_DEVICES)
        ]
        births = Births(broker)
        births.wait(devices, UP_S)
        for name, end in _ways(broker).items():
            time.sleep(SETTLE_S)
            print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
            found[name] = _restart(broker, births, devices, end)
        reports = [process.report() for process in running]
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report)
    restarts = len(_ways(broker))
    # Each restart ends every connection once, which sessions count as a failure of the link.
    failures = sum(total[kind] for kind in ("link", "busy", "config")) - restarts * devices
    return {**found, "connects": total["connects"], "failed_tries": failures}


def _ways(broker: Broker) -> dict[str, Callable[[], object]]:
    """Return how the broker ends."""

    def kill_and_lose() -> None:
        broker.kill()
        broker.forget()

    return {"killed": broker.kill, "killed, sessions lost": kill_and_lose, "stopped": broker.stop}


def _restart(
    broker: Broker, births: Births, devices: int, end: Callable[[], object]
) -> dict[str, Any]:
    end()
    logged = broker.log.stat().st_size
    time.sleep(DOWN_S)
    broker.start()
    began_s = time.monotonic()
    times = [at_s - began_s for at_s in births.wait(devices, UP_S)]
    cpu = cpu_s(broker.pid)
    connects = _connects(broker.log.read_bytes()[logged:].decode())
    per_second = Counter(int(at_s) for at_s in times)
    return {
        "median_s": round(times[len(times) // 2], 2),
        "last_s": round(times[-1], 2),
        "births_a_second_most": max(per_second.values()),
        "broker_cpu_s": round(cpu, 2),
        "accepted": connects["New client connected"],
        "broker_errors": connects["error"],
    }


def _connects(log: str) -> Counter[str]:
    """Return what the broker's log says of connections to its TLS listeners."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        if "as sim/device/" in line and "New client connected" in line:
            found["New client connected"] += 1
        elif re.search("error|denied|not authori", line, re.IGNORECASE):
            found["error"] += 1
    return found


if __name__ == "__main__":
    main()
