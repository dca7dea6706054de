"""What ``ota/prometheus`` ships, by Prometheus' own tools, and held to what devices and docs say.

promtool feeds samples at their own times, so these tests are of the rules' logic. Samples that come
ten minutes at a time, late, are in ``test_prometheus_batches.py``.
"""

from __future__ import annotations

import re
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from metrics_cases import ListSource, alarm_of, device_of
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as MetricFamily
from prometheus_client.samples import Sample
from yaml_files import read_yaml

from device.telemetry.alarm_rules import DEFAULTS
from device.telemetry.loss_window import DEVIATIONS, MIN_PROBES, WINDOW_S, wilson_lower_bound
from ota.ingest import metrics as ingest
from ota.metrics.export_metrics import ExportMetrics
from ota.metrics.live import FleetCollector
from ota.metrics.names import METRICS
from ota.metrics.source import Facts, Validity

ROOT = Path(__file__).parents[2]
SHIPPED = Path(str(files("ota") / "prometheus"))
CASES = sorted((ROOT / "tests/data/prometheus").glob("*.test.yml"))
ALERT_OF_ALARM = {
    "gpu_memory": "EdgekitGpuMemoryHigh",
    "unified_memory": "EdgekitUnifiedMemoryHigh",
    "packet_loss": "EdgekitPacketLoss",
    "temperature": "EdgekitTemperatureHigh",
    "storage_temperature": "EdgekitStorageTemperatureHigh",
    "throttling": "EdgekitThrottling",
    "disk": "EdgekitDiskFull",
    "storage_life": "EdgekitStorageWorn",
}


def tool(*command: str | Path) -> str:
    """Run a command that must succeed; return what it says."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def alerts() -> dict[str, dict[str, Any]]:
    groups = read_yaml(SHIPPED / "alerting.rules.yml")["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def records() -> dict[str, str]:
    groups = read_yaml(SHIPPED / "recording.rules.yml")["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_prometheus_takes_the_configuration() -> None:
    """Prometheus and Alertmanager find nothing wrong with what ships."""
    assert "SUCCESS" in tool("promtool", "check", "config", SHIPPED / "prometheus.yml")
    rules = sorted(SHIPPED.glob("*.rules.yml"))
    assert len(rules) == 2
    said = tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *rules)
    assert "FAILED" not in said
    assert "SUCCESS" in tool("amtool", "check-config", SHIPPED / "alertmanager.yml")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.split(".")[0])
def test_rules_do_what_their_cases_say(case: Path) -> None:
    """Alerts begin, stay and end as the cases of promtool say."""
    assert "SUCCESS" in tool("promtool", "test", "rules", case)


def test_every_alert_has_a_case() -> None:
    """No alert ships that no case names."""
    text = "".join(case.read_text() for case in CASES)
    unnamed = [name for name in alerts() if f'"{name}"' not in text and f": {name}" not in text]
    assert unnamed == []


@pytest.mark.parametrize("alarm", DEFAULTS)
def test_thresholds_are_the_devices(alarm: str) -> None:
    """The second witness raises and clears where the device does, as gravely."""
    rule, alert = DEFAULTS[alarm], alerts()[ALERT_OF_ALARM[alarm]]
    assert f'edgekit_fleet_alarm_active{{alarm="{alarm}"}}' in alert["expr"]
    raised = {float(number) for number in re.findall(r" > ([0-9.]+)(?=[\s)])", alert["expr"])}
    assert raised - {0} == {rule.raise_above}
    assert re.findall(r" >= ([0-9.]+)\s", alert["expr"]) == [f"{rule.clear_below:g}"]
    assert alert["labels"]["severity"] == rule.severity
    assert f'ALERTS{{alertname="{alert["alert"]}", alertstate="firing"}}' in alert["expr"]


def test_the_generic_alert_leaves_out_what_has_its_own() -> None:
    """An alarm is told by one alert: its own, or the one for all others."""
    expression = alerts()["EdgekitDeviceAlarm"]["expr"]
    match = re.search(r'alarm!~"([^"]+)"', expression)
    assert match is not None
    assert set(match[1].split("|")) == set(DEFAULTS)


def test_windows_hold_two_batches() -> None:
    """No rule looks at a device's series over less than two batches of ten minutes."""
    for name, expression in [*records().items(), *((n, a["expr"]) for n, a in alerts().items())]:
        for window in re.findall(r"edgekit_device_\w+\[(\w+)\]", expression):
            assert int(window.removesuffix("m")) >= 20, name
        bare = re.findall(r"edgekit_device_\w+(?![\w\[])", expression)
        assert bare == [], f"{name} looks at {bare} of this instant, which is seldom there"


def test_loss_has_the_devices_constants() -> None:
    """Window, least probes and deviations of the rule are those of the device's own window."""
    rules = records()
    assert WINDOW_S == (80 - 20) * 60
    assert "[80m]" in rules["device:edgekit_probes_sent:increase80m"]
    assert f">= {MIN_PROBES})" in rules["device:edgekit_probe_loss:ratio80m"]
    bound = " ".join(rules["device:edgekit_probe_loss_lower_bound:ratio80m"].split())
    assert f"- {DEVIATIONS:g} * sqrt(" in bound
    assert bound.count(f"{DEVIATIONS**2:g} / ") == 3


@pytest.mark.parametrize(("sent", "lost"), [(1200, 0), (1200, 40), (4800, 5), (4800, 4800)])
def test_loss_is_what_the_device_computes(sent: int, lost: int, tmp_path: Path) -> None:
    """The rule's lower bound is that of the device's code, to one part in a thousand."""
    expected = wilson_lower_bound(lost, sent)
    bound = "device:edgekit_probe_loss_lower_bound:ratio80m"
    case = tmp_path / "bound.test.yml"
    series = "".join(
        f"      - series: edgekit_device_probe_{name}_total{{device='d'}}\n"
        f"        values: 0 {total}x90\n"
        for name, total in (("sent", sent), ("lost", lost))
    )
    case.write_text(
        f"rule_files: [{SHIPPED / 'recording.rules.yml'}]\n"
        "evaluation_interval: 1m\n"
        f"tests:\n  - interval: 1m\n    input_series:\n{series}"
        "    promql_expr_test:\n"
        f"      - expr: abs({bound} - {expected!r}) <= bool {max(expected, 1e-9) * 1e-3!r}\n"
        "        eval_time: 80m\n"
        "        exp_samples: [{labels: '{device=\"d\"}', value: 1}]\n"
    )
    assert "SUCCESS" in tool("promtool", "test", "rules", case)


def test_every_metric_exists() -> None:
    """Rules and dashboards ask for nothing that neither exporter, ingest nor a rule provides."""
    registry = CollectorRegistry()
    validity = Validity(0, 1)
    facts = Facts({("t", "d"): validity}, {"root": validity}, {("t", "d"): 0})
    source = ListSource(known=[device_of("d", 0)], alarms=[alarm_of("d", "disk", "uptime_s")])
    registry.register(FleetCollector(source, lambda: facts))
    scraped = {
        sample.name
        for one in (registry, ExportMetrics().registry, ingest.Metrics().registry)
        for family in one.collect()
        for sample in (*family.samples, _family_sample(family))
    }
    known = scraped | {metric.name for metric in METRICS.values()}
    shipped = [*SHIPPED.glob("*.rules.yml"), *(ROOT / "ota/grafana/dashboards").glob("*.json")]
    text = "".join(path.read_text() for path in shipped)
    asked = set(re.findall(r"(?<![\w:])edgekit_(?:device|fleet|ingest)_\w+", text))
    assert asked <= known, asked - known
    assert set(re.findall(r"\w+:edgekit_\w+:\w+", text)) <= set(records())


def _family_sample(family: MetricFamily) -> Sample:
    """Return what a family that nothing was counted in yet will be called."""
    counts = family.type == "counter"
    return Sample(f"{family.name}_total" if counts else family.name, {}, 0)


def test_runbooks_are_there() -> None:
    """Every alert links to a heading of docs/alerts.md, and every heading there is an alert's."""
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/alerts.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())
    for name, alert in alerts().items():
        assert alert["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"


def test_inhibitions_name_alerts_that_exist() -> None:
    """No rule of inhibition is about an alert that does not exist, or misses its labels."""
    config = read_yaml(SHIPPED / "alertmanager.yml")
    named: set[str] = set()
    for rule in config["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            named |= set(re.findall(r"Edgekit\w+", matcher))
    assert named <= set(alerts())
    assert {"EdgekitFleetSilent", "EdgekitDeviceSilent", "EdgekitIngestDown"} <= named
