"""Simulates how fast the packet-loss alarm is, and how often it is false, at true rates of loss.

Usage: python tests/bench/bench_packet_loss.py [--devices 400] [--hours 24] > report.json
A device sends a probe a second and looks every five, as the agent does; losses are independent. Of
each rate and each width of the bound it says the share of devices that raised the alarm, within an
hour and in all, and the median time of those that did.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from typing import Any

from device.telemetry.alarm_rules import DEFAULTS, PERIOD_S
from device.telemetry.alarms import Alarms
from device.telemetry.loss_window import DEVIATIONS, LossWindow

RATES = (0.0005, 0.001, 0.002, 0.005, 0.01)
HOUR_S = 3600.0


def raised_s(rate: float, hours: float, deviations: float, seed: int) -> float | None:
    """Return when a device raises the alarm, in seconds; None if it does not.

    Args:
        rate: True share of probes that are lost.
        hours: How long it runs.
        deviations: Of the bound.
        seed: Of its losses.
    """
    chance = random.Random(seed)
    window = LossWindow(deviations=deviations)
    alarms = Alarms({"packet_loss": DEFAULTS["packet_loss"]})
    sent = lost = 0
    now_s = 0.0
    while now_s < hours * HOUR_S:
        now_s += PERIOD_S
        for _ in range(int(PERIOD_S)):
            sent += 1
            lost += chance.random() < rate
        values = {"probe_loss_lower_bound_ratio": window.update(now_s, sent, lost)}
        if alarms.step(values, now_s):
            return now_s
    return None


def report_of(rate: float, hours: float, deviations: float, devices: int) -> dict[str, Any]:
    """Return what became of a fleet."""
    times = [raised_s(rate, hours, deviations, seed) for seed in range(devices)]
    raised = [time_s for time_s in times if time_s is not None]
    return {
        "rate": rate,
        "deviations": deviations,
        "raised_1h": sum(time_s <= HOUR_S for time_s in raised) / devices,
        "raised": len(raised) / devices,
        "median_minutes": round(statistics.median(raised) / 60, 1) if raised else None,
    }


def main() -> None:
    """Simulate all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=400)
    parser.add_argument("--hours", type=float, default=24.0)
    options = parser.parse_args()
    found = [
        report_of(rate, options.hours, deviations, options.devices)
        for rate in RATES
        for deviations in (DEVIATIONS, 1.96)
    ]
    json.dump(
        {"devices": options.devices, "hours": options.hours, "rates": found}, sys.stdout, indent=1
    )


if __name__ == "__main__":
    main()
