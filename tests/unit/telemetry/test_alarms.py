"""Alarms: decided in time, never flapping, never on what was not seen."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.telemetry.alarm_rules import DECISION_S, DEFAULTS, PERIOD_S, Rule, rules_from_config
from device.telemetry.alarms import Alarms, Decision
from device.telemetry.loss_window import LossWindow, wilson_lower_bound
from edgekit.errors import TelemetryError

READING = "temperature_celsius.cpu"
RULE = Rule("temperature_celsius", 90.0, 85.0)


def run(points: list[tuple[float, float | None]], rule: Rule = RULE) -> list[tuple[float, str]]:
    """Return when what was decided of readings at given times."""
    alarms = Alarms({"hot": rule})
    return [
        (now_s, decision.state)
        for now_s, value in points
        for decision in alarms.step({READING: value}, now_s)
    ]


@st.composite
def readings(draw: st.DrawFn, values: Any) -> list[tuple[float, float | None]]:
    """Readings at most a period apart."""
    gaps = draw(st.lists(st.floats(0.01, PERIOD_S), min_size=1, max_size=60))
    times = [sum(gaps[: index + 1]) for index in range(len(gaps))]
    return [(now_s, draw(values)) for now_s in times]


@given(readings(st.none() | st.floats(60, 120)), st.floats(0, 5), st.floats(0, 40))
def test_decisions_alternate_and_hold(
    points: list[tuple[float, float | None]], hold_s: float, clear_hold_s: float
) -> None:
    """Raised and cleared take turns, and each came after readings that all held for its time."""
    rule = Rule("temperature_celsius", 90, 85, hold_s=hold_s, clear_hold_s=clear_hold_s)
    found = run(points, rule)
    assert [state for _, state in found] == ["raised", "cleared"] * (len(found) // 2) + [
        "raised"
    ] * (len(found) % 2)
    for when, state in found:
        before_s = when - (hold_s if state == "raised" else clear_hold_s)
        held = [value for now_s, value in points if before_s < now_s <= when]
        assert all(v is not None and (v > 90 if state == "raised" else v < 85) for v in held)


@given(readings(st.floats(85, 90)), st.booleans())
def test_nothing_flaps_inside_the_band(
    points: list[tuple[float, float | None]],
    raised: bool,  # noqa: FBT001
) -> None:
    """Between the thresholds nothing begins, and nothing that is raised ends."""
    start = [(-20.0, 95.0), (-15.0, 95.0)] if raised else []
    assert len(run([*start, *points])) == int(raised)


@given(st.floats(0, 10_000), st.floats(0.1, PERIOD_S), st.floats(0, 5), st.floats(90.001, 200))
def test_an_alarm_is_decided_in_time(
    since_s: float, period_s: float, hold_s: float, value: float
) -> None:
    """From the moment that a reading passes for good, it is decided within 15 seconds."""
    rule = Rule("temperature_celsius", 90, 85, hold_s=hold_s)
    rule.check("hot")
    times = [index * period_s for index in range(int((since_s + 40) / period_s))][-1000:]
    [(when, state)] = run([(t, value if t >= since_s else 20.0) for t in times], rule)
    assert state == "raised"
    assert when - since_s <= DECISION_S


def test_every_default_is_decided_in_time() -> None:
    """What is shipped passes its own checks, and rules look at series that sensors report."""
    assert rules_from_config({}) == DEFAULTS
    assert all(rule.hold_s + 2 * PERIOD_S <= DECISION_S for rule in DEFAULTS.values())


def test_a_missing_reading_decides_nothing() -> None:
    """It ends a hold that runs, and leaves a raised alarm as it is."""
    assert run([(0, 95), (5, None), (6, 95), (10, 95)]) == []
    raised: list[tuple[float, float | None]] = [(0, 95), (5, 95)]
    assert run([*raised, *((5.0 * i, None) for i in range(2, 100))]) == [(5, "raised")]


def test_each_label_is_an_alarm_of_its_own() -> None:
    """Births list what is raised; a reading that vanishes stays raised."""
    alarms = Alarms({"hot": RULE})
    for now_s in (0.0, 5.0):
        found = alarms.step(
            {"temperature_celsius.cpu": 95.5, "temperature_celsius.gpu": 20, "gpu_mhz": 1300}, now_s
        )
    assert found == [Decision("hot", "temperature_celsius.cpu", "raised", "major", 95.5, 90.0)]
    assert alarms.step({}, 10.0) == []
    assert alarms.raised == ("hot:temperature_celsius.cpu",)
    for now_s in (15.0, 45.0):
        found = alarms.step({"temperature_celsius.cpu": 60}, now_s)
    assert [(d.state, d.threshold) for d in found] == [("cleared", 85.0)]
    assert not alarms.raised


def test_engine_memory_and_unified_memory_are_apart() -> None:
    """The engine at 91 % of its budget is an alarm on a board whose memory is half free."""
    alarms = Alarms(DEFAULTS)
    for now_s in (0.0, 5.0):
        found = alarms.step({"engine_memory_used_ratio": 0.91, "memory_used_ratio": 0.5}, now_s)
    assert [(d.alarm, d.severity) for d in found] == [("gpu_memory", "major")]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "alarms is not a table"),
        ({"hot": 3}, "alarm 'hot' is not a table of"),
        ({"temperature": {"raise": 3}}, "alarm 'temperature' is not a table of"),
        ({"new": {"series": "gpu_mhz"}}, "alarm 'new' lacks clear_below, raise_above"),
        ({"new": {"series": "x", "raise_above": 2, "clear_below": 1}}, "there is no series 'x'"),
        ({"temperature": {"series": ["gpu_mhz"]}}, "there is no series \\['gpu_mhz'\\]"),
        ({"temperature": {"severity": ["major"]}}, "severity \\['major'\\] is not one of"),
        ({"temperature": {"hold_s": [5]}}, "a threshold or time is not a number"),
        ({"temperature": {"clear_below": 90}}, "clear_below is not below raise_above"),
        ({"temperature": {"raise_above": "hot"}}, "a threshold or time is not a number"),
        ({"temperature": {"hold_s": 6}}, "hold_s is not from 0 to 5"),
        ({"temperature": {"severity": "bad"}}, "severity 'bad' is not one of"),
        ({"a/b": {"series": "gpu_mhz", "raise_above": 2, "clear_below": 1}}, "is not a name"),
    ],
)
def test_wrong_rules_are_named(config: Any, message: str) -> None:
    """Configuration is refused as a whole, with the rule and the fault."""
    with pytest.raises(TelemetryError, match=message):
        rules_from_config(config)


def test_rules_are_changed_and_switched_off_by_name() -> None:
    """What is not named keeps its default."""
    rules = rules_from_config({"temperature": {"raise_above": 95}, "disk": False})
    assert rules["temperature"] == Rule("temperature_celsius", 95, 85.0)
    assert set(rules) == set(DEFAULTS) - {"disk"}


@pytest.mark.parametrize(
    ("lost", "sent", "deviations", "bound"),
    [(0, 100, 1.96, 0.0), (1, 100, 1.96, 0.001767), (10, 1000, 1.96, 0.005441),
     (3, 3000, 3.0, 0.000209), (100, 100, 1.96, 0.963007)],
)  # fmt: skip
def test_wilson(lost: int, sent: int, deviations: float, bound: float) -> None:
    """Values of the published formula."""
    assert wilson_lower_bound(lost, sent, deviations) == pytest.approx(bound, abs=2e-6)


@given(st.integers(1, 10**6), st.data())
def test_the_bound_is_below_the_ratio(sent: int, data: st.DataObject) -> None:
    """It lies in [0, ratio], and more proof never lowers it."""
    lost = data.draw(st.integers(0, sent))
    bound = wilson_lower_bound(lost, sent)
    assert 0 <= bound <= lost / sent + 1e-12
    assert wilson_lower_bound(10 * lost, 10 * sent) >= bound - 1e-12


def day(loss: float, seed: int, hours: int = 24) -> list[tuple[float, str]]:
    """Return the alarms of a probe a second on a link that loses independently."""
    chance = random.Random(seed)
    window, alarms = LossWindow(), Alarms({"packet_loss": DEFAULTS["packet_loss"]})
    lost = 0
    found: list[tuple[float, str]] = []
    for second in range(hours * 3600):
        lost += chance.random() < loss
        if second % 5 == 0:
            bound = window.update(second, second, lost)
            values = {"probe_loss_lower_bound_ratio": bound}
            found += [(second, d.state) for d in alarms.step(values, second)]
    return found


def test_a_link_that_loses_one_percent_is_found_soon() -> None:
    """As soon as there are enough probes to say so, and it does not flap over a day."""
    for seed in range(3):
        [(when, state)] = day(0.01, seed, hours=8)
        assert state == "raised"
        assert when < 1500


def test_a_good_link_raises_nothing() -> None:
    """A loss of half the threshold is no alarm for days."""
    assert [day(0.0005, seed) for seed in range(4)] == [[]] * 4


def test_the_window_forgets_and_begins_anew() -> None:
    """What was lost more than an hour ago does not count, nor does what another probe counted."""
    window = LossWindow()
    assert window.update(0, 0, 0) is None
    assert window.update(999, 999, 99) is None
    assert window.update(1000, 1000, 100) == pytest.approx(0.0752, abs=1e-3)
    for second in range(1010, 6000, 10):
        bound = window.update(second, second, 100)
    assert bound == 0.0
    assert window.update(6000, 5, 1) is None
    assert len(window._points) <= 362


def changed(rules: dict[str, Rule], readings: dict[str, float] | None = None) -> list[Decision]:
    """Return what is decided at the first look after a change; one alarm is raised, one rises."""
    alarms = Alarms({"hot": RULE, "warm": Rule("temperature_celsius", 60, 50)})
    alarms.step({READING: 95.0}, 0.0)
    assert len(alarms.step({READING: 95.0}, 5.0)) == 2
    alarms.change(rules)
    return alarms.step({READING: 86.0} if readings is None else readings, 10.0)


def test_a_change_of_rules_keeps_what_is_unchanged() -> None:
    """Nothing is decided twice; a hold that runs goes on, one of a changed rule begins anew."""
    assert changed({"hot": RULE, "warm": Rule("temperature_celsius", 60, 50)}) == []
    assert changed({"hot": Rule("temperature_celsius", 80, 70), "warm": RULE}) == []
    for other, decided in ((RULE, 1), (Rule("temperature_celsius", 80, 70), 0)):
        alarms = Alarms({"hot": RULE})
        assert not alarms.step({READING: 95.0}, 0.0)
        alarms.change({"hot": other, "new": Rule("memory_used_ratio", 0.9, 0.8)})
        assert len(alarms.step({READING: 95.0}, 5.0)) == decided
        assert len(alarms.step({READING: 95.0}, 10.0)) == 1 - decided


def test_other_thresholds_decide_when_it_ends() -> None:
    """What is raised stays so until a reading is below the new one."""
    alarms = Alarms({"hot": RULE})
    alarms.step({READING: 95.0}, 0.0)
    alarms.step({READING: 95.0}, 5.0)
    alarms.change({"hot": Rule("temperature_celsius", 98.0, 96.0, clear_hold_s=5)})
    assert alarms.raised == (f"hot:{READING}",)
    assert not alarms.step({READING: 95.0}, 10.0)
    (decision,) = alarms.step({READING: 95.0}, 15.0)
    assert (decision.state, decision.threshold) == ("cleared", 96.0)


@pytest.mark.parametrize(
    "rules", [{"warm": RULE}, {"warm": RULE, "hot": Rule("memory_used_ratio", 0.9, 0.8)}]
)
def test_what_nothing_looks_at_any_more_is_cleared(rules: dict[str, Rule]) -> None:
    """Else it would be raised for ever; told once, with its last reading."""
    (decision,) = changed(rules, {})
    assert (decision.alarm, decision.state, decision.value) == ("hot", "cleared", 95.0)
