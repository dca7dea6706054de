"""Counters with labels: the first rise alerts, for all of them are told from the start."""

from __future__ import annotations

import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from metrics_cases import stored
from telemetry_fakes import FakeClock

from device.telemetry.alarm_rules import PERIOD_S
from device.telemetry.alarms import Alarms
from device.telemetry.collector import Collector
from device.telemetry.ring import ALARM, DROP_REASONS, Limits, Ring
from device.telemetry.rows import sample_of
from device.telemetry.sensors.counters import Counters
from edgekit.contracts.series import Number
from ota.metrics.points import Selection, read_chunk

RULES = Path(str(files("ota") / "prometheus"))
START_MS = 1_784_970_500_000
STEP_MS = 10_000
STEPS = 120
CASE = """
rule_files: [{rules}/recording.rules.yml, {rules}/alerting.rules.yml]
evaluation_interval: 30s
tests:
  - interval: 10s
    input_series:
{series}
    alert_rule_test:
      - eval_time: 9m
        alertname: EdgekitTelemetryDropped
    promql_expr_test:
      - expr: count by (device) (ALERTS{{alertname="EdgekitTelemetryDropped"}})
        eval_time: 20m
        exp_samples: [{{labels: '{{device="orin-1"}}', value: 1}}]
"""


def measure(ring: Ring, clock: FakeClock) -> dict[int, dict[str, Number | None]]:
    """Return twenty minutes of the samples of a device that drops rows after ten."""
    collector = Collector([Counters("ring", ring.values)], Alarms({}), ring, clock)
    found = {}
    for step in range(STEPS):
        if step == STEPS // 2:
            ring.put([b"x" * 700] * 1000)
        collector.tick()
        [row] = ring.take(1)
        found[START_MS + step * STEP_MS] = dict(sample_of(row).values)
        clock.pass_ms(int(PERIOD_S * 1000))
        collector.tick()
        clock.pass_ms(int(PERIOD_S * 1000))
    return found


def test_the_first_rows_that_are_dropped_raise_the_alert(tmp_path: Path) -> None:
    """From a device's first sample over the exporter's points to the rule, once rows are lost."""
    clock = FakeClock(START_MS)
    ring = Ring(tmp_path / "ring.db", "f" * 16, clock, Limits(file_bytes=500_000))
    samples = measure(ring, clock)
    ring.close()
    chunk = read_chunk([stored(1, samples)], Selection(), START_MS + STEPS * STEP_MS)
    dropped = [one for one in chunk.series if one.reading.startswith("ring_dropped_total.")]
    assert {one.reading.partition(".")[2] for one in dropped} == set(DROP_REASONS)
    assert max(value for one in dropped for _, value in one.points) > 0
    series = "".join(
        "      - series: 'edgekit_device_ring_dropped_total"
        f'{{tenant="{one.tenant}", device="{one.device}", reason="{one.reading[19:]}"}}\'\n'
        f"        values: {_values(dict(one.points))}\n"
        for one in dropped
    )
    case = tmp_path / "case.test.yml"
    case.write_text(CASE.format(rules=RULES, series=series))
    command = ("promtool", "test", "rules", case)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "SUCCESS" in done.stdout, done.stdout + done.stderr


def _values(points: dict[int, float]) -> str:
    """Return points as promtool's cases have them; ``_`` is a missing one."""
    times = range(START_MS, START_MS + STEPS * STEP_MS, STEP_MS)
    return " ".join(f"{points[at]:g}" if at in points else "_" for at in times)


@pytest.mark.parametrize("reason", DROP_REASONS)
def test_every_reason_is_told_from_the_start(tmp_path: Path, reason: str) -> None:
    """Those that have not been met are 0; when one is, no other reason comes up."""
    clock, path = FakeClock(), tmp_path / "ring.db"
    if reason == "broken":
        path.write_bytes(b"no database" * 1000)
    ring = Ring(path, "f" * 16, clock, Limits(file_bytes=300_000, age_ms=60_000))
    names = {f"ring_dropped_total.{one}" for one in DROP_REASONS}
    if reason != "broken":
        assert {name: ring.values()[name] for name in names} == dict.fromkeys(names, 0)
    ring.put([b"x" * 700] * 3, ALARM)
    if reason == "unsendable":
        ring.discard(ring.take(1, ALARM)[0], reason)
    elif reason == "full":
        ring.put([b"x" * 700] * 1000)
    elif reason == "age":
        clock.pass_ms(61_000)
        ring.put([b"new"])
    values = ring.values()
    ring.close()
    rose = {name for name in values if name.startswith("ring_dropped_total.") and values[name]}
    assert rose == {f"ring_dropped_total.{reason}"}


def test_sensors_that_work_say_so(tmp_path: Path) -> None:
    """Each sensor's errors are 0 in the first sample, not absent until it fails."""
    clock = FakeClock()
    ring = Ring(tmp_path / "ring.db", "f" * 16, clock)
    sensors = [Counters("ring", ring.values), Counters("engine", lambda: {"uptime_s": 1})]
    values, _ = Collector(sensors, Alarms({}), ring, clock).tick()
    ring.close()
    assert (values["sensor_errors_total.ring"], values["sensor_errors_total.engine"]) == (0, 0)
