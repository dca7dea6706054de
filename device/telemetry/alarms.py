"""Decides alarms on the device: a state machine a rule and reading, without clocks and files.

    quiet ──above──► rising ──held──► raised ──below──► falling ──held──► quiet
      ▲                │                 ▲                 │
      └───not above────┘                 └───not below─────┘

Between the two thresholds nothing begins and nothing ends. A missing reading neither holds nor
breaks an alarm that is raised; it ends a hold that runs, so that none is decided on what was not
seen. All times are of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from device.telemetry.alarm_rules import Rule
from edgekit.contracts.series import Number, Values, split_name

_EARLY_S = 0.5
"""A look that is this much early still ends a hold: else it would take another period."""


@dataclass(frozen=True, slots=True)
class Decision:
    """An alarm that begins or ends.

    Attributes:
        alarm: The rule's name.
        reading: What it is about.
        state: ``raised`` or ``cleared``.
        severity: The rule's.
        value: The reading that decided.
        threshold: What it passed.
    """

    alarm: str
    reading: str
    state: str
    severity: str
    value: Number
    threshold: float


@dataclass(slots=True)
class _State:
    """Of one rule and reading; ``since_s`` is when a hold began, None if none runs.

    ``last`` is the last reading that was there.
    """

    raised: bool = False
    since_s: float | None = None
    last: Number = 0

    def step(self, rule: Rule, value: Number | None, now_s: float) -> bool:
        """Take in a reading; whether ``raised`` changed."""
        self.last = self.last if value is None else value
        turning = value is not None and (
            value < rule.clear_below if self.raised else value > rule.raise_above
        )
        if not turning:
            self.since_s = None
            return False
        if self.since_s is None:
            self.since_s = now_s
        hold_s = rule.clear_hold_s if self.raised else rule.hold_s
        if now_s - self.since_s < hold_s - _EARLY_S:
            return False
        self.raised, self.since_s = not self.raised, None
        return True


class Alarms:
    """The alarms of one device.

    Args:
        rules: By name.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)
        self._states: dict[tuple[str, str], _State] = {}
        self._withdrawn: list[Decision] = []

    @property
    def raised(self) -> tuple[str, ...]:
        """What is raised now, as births list it: ``alarm:reading``."""
        return tuple(
            f"{alarm}:{reading}"
            for (alarm, reading), state in sorted(self._states.items())
            if state.raised
        )

    def change(self, rules: Mapping[str, Rule]) -> None:
        """Go by other rules from the next look on.

        What is raised stays raised where a rule has other thresholds, which decide when it ends;
        a hold begins anew. What nothing looks at any more is cleared, with its last reading: else
        nobody ever would. A rule that is the same keeps all.

        Args:
            rules: By name; all of them.
        """
        for (alarm, reading), state in list(self._states.items()):
            old, new = self._rules[alarm], rules.get(alarm)
            if new is None or new.series != old.series:
                del self._states[alarm, reading]
                if state.raised:
                    self._withdrawn.append(_decision(alarm, old, reading, state.last, raised=False))
            elif new != old:
                state.since_s = None
        self._rules = dict(rules)

    def step(self, values: Values, now_s: float) -> list[Decision]:
        """Take in the readings of now; call it every ``PERIOD_S``.

        Args:
            values: Readings; what is not among them is missing.
            now_s: Monotonic time.

        Returns:
            What begins and ends.
        """
        series = {name: split_name(name)[0] for name in values}
        decisions, self._withdrawn = self._withdrawn, []
        for alarm, rule in self._rules.items():
            seen = {name for name, of in series.items() if of == rule.series}
            known = {reading for name, reading in self._states if name == alarm}
            for reading in sorted(seen | known):
                state = self._states.setdefault((alarm, reading), _State())
                value = values.get(reading)
                if state.step(rule, value, now_s) and value is not None:
                    decisions.append(_decision(alarm, rule, reading, value, raised=state.raised))
        return decisions


def _decision(alarm: str, rule: Rule, reading: str, value: Number, *, raised: bool) -> Decision:
    return Decision(
        alarm=alarm,
        reading=reading,
        state="raised" if raised else "cleared",
        severity=rule.severity,
        value=value,
        threshold=rule.raise_above if raised else rule.clear_below,
    )
