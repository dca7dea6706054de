"""What of the telemetry may change while it runs; the rest is read at its start alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from device.telemetry.alarm_rules import DEFAULTS, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How often, how much, and what is an alarm; a change is another object.

    Attributes:
        sample_s: Time between two samples while all is well.
        batch_s: Time between two batches while all is well.
        daily_bytes: Most bytes a UTC day on the broker's connection.
        probe_daily_bytes: Most bytes a day for probes of the link.
        rules: The alarms by name.
    """

    sample_s: float = 10.0
    batch_s: float = 600.0
    daily_bytes: int = 4_000_000
    probe_daily_bytes: int = 8_000_000
    rules: Mapping[str, Rule] = field(default_factory=lambda: DEFAULTS)
