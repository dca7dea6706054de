"""Thresholds of the device's alarms, from its configuration.

A rule raises its alarm for a reading that stays above a threshold for the hold time and clears it
once the reading stays below a lower one. The defaults are for an AGX Orin, which throttles at 99
degrees; configuration replaces rules by name. What decides is ``device.telemetry.alarms``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgekit.contracts.fields import show
from edgekit.contracts.series import SERIES, is_value
from edgekit.contracts.telemetry import SEVERITIES
from edgekit.contracts.topics import SEGMENT
from edgekit.errors import TelemetryError

PERIOD_S = 5.0
"""How often rules look at readings."""
DECISION_S = 15.0
"""By when an alarm is decided after its reading passed the threshold for good."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One alarm.

    Attributes:
        series: What it looks at; each label is an alarm of its own.
        raise_above: It is raised for a reading above this for ``hold_s``.
        clear_below: It is cleared for a reading below this for ``clear_hold_s``.
        severity: One of thin-edge.io's.
        hold_s: At most 5, so that it is decided in time whatever the moment.
        clear_hold_s: Longer, since nobody waits for the end of an alarm.
    """

    series: str
    raise_above: float
    clear_below: float
    severity: str = "major"
    hold_s: float = PERIOD_S
    clear_hold_s: float = 30.0

    def check(self, name: str) -> None:
        """Refuse a rule that cannot work.

        Raises:
            TelemetryError: Names the rule and what is wrong.
        """
        numbers = (self.raise_above, self.clear_below, self.hold_s, self.clear_hold_s)
        if SEGMENT.fullmatch(name) is None:
            raise TelemetryError(f"{show(name)} is not a name for an alarm")
        if not isinstance(self.series, str) or self.series not in SERIES:
            raise TelemetryError(f"alarm {name}: there is no series {show(self.series)}")
        if not all(is_value(number) and number is not None for number in numbers):
            raise TelemetryError(f"alarm {name}: a threshold or time is not a number")
        if self.clear_below >= self.raise_above:
            raise TelemetryError(f"alarm {name}: clear_below is not below raise_above")
        longest_s = DECISION_S - 2 * PERIOD_S
        if not 0 <= self.hold_s <= longest_s or self.clear_hold_s < 0:
            raise TelemetryError(f"alarm {name}: hold_s is not from 0 to {longest_s:g}")
        if self.severity not in SEVERITIES:
            raise TelemetryError(
                f"alarm {name}: severity {show(self.severity)} is not one of {SEVERITIES}"
            )


DEFAULTS: Mapping[str, Rule] = {
    "gpu_memory": Rule("engine_memory_used_ratio", 0.90, 0.87),
    "unified_memory": Rule("memory_used_ratio", 0.95, 0.92, "critical"),
    "packet_loss": Rule("probe_loss_lower_bound_ratio", 0.001, 0.0002, clear_hold_s=60.0),
    "temperature": Rule("temperature_celsius", 90.0, 85.0),
    "storage_temperature": Rule("storage_temperature_celsius", 80.0, 75.0),
    "throttling": Rule("throttling_alerts", 0.5, 0.25),
    "disk": Rule("disk_used_ratio", 0.90, 0.87),
    "storage_life": Rule("storage_life_used_ratio", 0.85, 0.75, "minor"),
}


def rules_from_config(data: Any) -> dict[str, Rule]:
    """Return the rules of a configuration's table ``alarms``: the defaults, changed by name.

    Args:
        data: Name to the fields that differ; false switches a rule off.

    Raises:
        TelemetryError: A name, a field or a value is wrong.
    """
    if not isinstance(data, Mapping):
        raise TelemetryError("alarms is not a table of rules by name")
    rules = dict(DEFAULTS)
    known = {field.name for field in fields(Rule)}
    for name, changes in data.items():
        if changes is False:
            rules.pop(name, None)
            continue
        if not isinstance(changes, Mapping) or not known >= set(changes):
            raise TelemetryError(f"alarm {show(name)} is not a table of {', '.join(sorted(known))}")
        default = asdict(DEFAULTS[name]) if name in DEFAULTS else {}
        values = {**default, **changes}
        lacking = {"series", "raise_above", "clear_below"} - set(values)
        if lacking:
            raise TelemetryError(f"alarm {show(name)} lacks {', '.join(sorted(lacking))}")
        rules[name] = Rule(**values)
    for name, rule in rules.items():
        rule.check(name)
    return rules
