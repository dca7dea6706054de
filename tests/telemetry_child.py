"""A device's telemetry as a process of its own, which a test kills.

Arguments: authority, certificate, key, the ring's file, the broker's port.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from telemetry_cases import ORIN, FastClock, telemetry

from device.telemetry.config import TelemetryConfig


class RunningClock(FastClock):
    """Fast, and the same in every process: a restarted one does not go back."""

    def now_s(self) -> float:
        return time.monotonic() * self.speed


def main() -> None:
    """Run until killed."""
    ca, certificate, key, ring = (Path(argument) for argument in sys.argv[1:5])
    config = TelemetryConfig(
        broker="localhost",
        port=int(sys.argv[5]),
        ca=ca,
        certificate=certificate,
        key=key,
        tenant=ORIN.tenant,
        device=ORIN.device,
        ring=ring,
        sample_s=5.0,
        batch_s=10.0,
        daily_bytes=100_000_000,
    )
    with telemetry(config, RunningClock(40.0)):
        time.sleep(600)


if __name__ == "__main__":
    main()
