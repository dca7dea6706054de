"""What holds: the owner's configuration with documents from afar laid over it.

Two kinds of settings are told apart. What can let a prompt leave the device or be written down
(``Leaks``) is the greatest lower bound of the owner's word and of every document: no document, and
no order of them, makes it looser than the owner has it. The rest replaces, key by key, what the
owner said: cohorts in the order of their names, then the device's own document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from device.routing.policy import Policy
from device.routing.remote import SHUT, read_remote
from device.routing.remote import TABLE as ROUTING
from device.telemetry.alarm_rules import DEFAULTS, Rule, rules_from_config
from edgekit.contracts.remote_settings import ALARMS, check_settings
from edgekit.errors import TelemetryError


@dataclass(frozen=True, slots=True)
class Leaks:
    """What may leave the device, or be written down, of what is asked and answered.

    Attributes:
        policy: What may go to a cloud endpoint.
        log_prompts: Whether prompts and answers may stand in a log.
    """

    policy: Policy = field(default_factory=Policy)
    log_prompts: bool = True

    def tightened_by(self, remote: Leaks) -> Leaks:
        """Return what both allow."""
        return Leaks(
            self.policy.tightened_by(remote.policy), self.log_prompts and remote.log_prompts
        )

    def allows_no_more_than(self, other: Leaks) -> bool:
        """Return whether everything that this allows is allowed by the other, too."""
        return (
            self.policy.allows_no_more_than(other.policy) and self.log_prompts <= other.log_prompts
        )


CLOSED: Final = Leaks(SHUT, log_prompts=False)
"""Nothing leaves: what holds while it is not known what was forbidden."""


@dataclass(frozen=True, slots=True)
class Local:
    """The owner's word, as far as documents may change it.

    Attributes:
        leaks: What may leave; by default nothing.
        alarms: The table ``alarms`` of the owner's file; :func:`alarm_table` makes it of rules.
        sample_s: Between two samples.
        batch_s: Between two batches.
    """

    leaks: Leaks = CLOSED
    alarms: Mapping[str, Any] = field(default_factory=dict)
    sample_s: float = 10.0
    batch_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Effective:
    """What holds. None leaves a setting to the owner's file, or its default.

    Attributes:
        leaks: What may leave.
        rules: The alarms.
        sample_s: Between two samples.
        batch_s: Between two batches.
        daily_bytes: What telemetry may send in a day.
        probe_daily_bytes: What probes of the link may take in a day.
        log_level: Of the log.
    """

    leaks: Leaks = CLOSED
    rules: Mapping[str, Rule] = field(default_factory=lambda: DEFAULTS)
    sample_s: float | None = None
    batch_s: float | None = None
    daily_bytes: int | None = None
    probe_daily_bytes: int | None = None
    log_level: str | None = None


TELEMETRY: Final = ("sample_s", "batch_s", "daily_bytes", "probe_daily_bytes")
"""Settings of the telemetry besides alarms."""


def merge(local: Local, documents: Iterable[Mapping[str, Any]]) -> Effective:
    """Return what holds.

    Args:
        local: The owner's word.
        documents: Settings of each document, the one that counts most last.

    Raises:
        MessageError: A setting may not be set from afar, or is not what it may be.
        ConfigError: A policy is none.
        TelemetryError: A rule cannot work, with what the owner says of it, nor batches that come
            more often than samples.
    """
    leaks, alarms = local.leaks, dict(local.alarms)
    said: dict[str, dict[str, Any]] = {}
    for settings in documents:
        check_settings(settings)
        leaks = leaks.tightened_by(_leaks_of(settings))
        for table, values in settings.items():
            if table == ALARMS:
                alarms |= {name: _changed(alarms.get(name), new) for name, new in values.items()}
            else:
                said.setdefault(table, {}).update(values)
    telemetry = said.get("telemetry", {})
    effective = Effective(
        leaks,
        rules_from_config(alarms),
        **{name: telemetry.get(name) for name in TELEMETRY},
        log_level=said.get("log", {}).get("level"),
    )
    if (effective.batch_s or local.batch_s) < (effective.sample_s or local.sample_s):
        raise TelemetryError(
            "batch_s would be below sample_s, counting what the owner has set", "Set both"
        )
    return effective


def alarm_table(rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the table ``alarms`` that says what some rules say."""
    table: dict[str, Any] = {name: False for name in DEFAULTS if name not in rules}
    return table | {name: asdict(rule) for name, rule in rules.items()}


def describe(effective: Effective) -> dict[str, Any]:
    """Return what holds in JSON's types, for people to read."""
    policy = effective.leaks.policy
    limit = policy.daily_bytes
    return {
        "routing": {
            "cloud": policy.cloud,
            "reasons": sorted(policy.reasons),
            "daily_bytes": None if limit == float("inf") else int(limit),
            "local_only": policy.local_only,
            "local_clients": sorted(policy.local_clients),
        },
        "log_prompts": effective.leaks.log_prompts,
        **{name: getattr(effective, name) for name in (*TELEMETRY, "log_level")},
        "alarms": {
            name: {"raise_above": rule.raise_above, "clear_below": rule.clear_below}
            for name, rule in effective.rules.items()
        },
    }


def _leaks_of(settings: Mapping[str, Any]) -> Leaks:
    policy = read_remote({ROUTING: settings.get(ROUTING, {})}, "a signed configuration")
    return Leaks(policy, log_prompts=settings.get("log", {}).get("prompts", True))


def _changed(rule: Any, new: Any) -> Any:
    """Return a rule with what a document says of it; false switches it off."""
    return {**rule, **new} if isinstance(rule, Mapping) and new is not False else new
