"""The shipped dashboards: every query of every panel, on what devices' own code has measured.

Grafana itself is not run here; what it asks of Prometheus is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
from dashboard_cases import watched_fleet
from prometheus_server import Prometheus
from yaml_files import read_yaml

from ota.metrics.names import METRICS

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "ota/grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
DASHBOARDS: Mapping[str, Any] = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
VARIABLES = {
    "$tenant": "acme",
    "$device": "orin-1",
    "$__rate_interval": "4m",
    "${datasource}": "edgekit-prometheus",
}


def filled_in(text: str) -> str:
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text, f"{text} has a variable that no dashboard has"
    return text


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with watched_fleet(tmp_path_factory.mktemp("fleet")) as server:
        yield server


def drawn(server: Prometheus, expression: str) -> list[dict[str, Any]]:
    """Return what a graph of the last three hours draws."""
    now_s = time.time()
    window = {"start": now_s - 3 * 3600, "end": now_s, "step": 30}
    answer = httpx.get(
        f"{server.url}/api/v1/query_range", params={"query": expression, **window}, timeout=30
    )
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_of_every_panel_finds_something(
    panel: Mapping[str, Any], prometheus: Prometheus
) -> None:
    """No panel of a fleet that works is empty, and no legend is."""
    for target in panel["targets"]:
        expression = filled_in(target["expr"])
        found = (prometheus.query if target["instant"] else drawn)(*(
            (expression,) if target["instant"] else (prometheus, expression)
        ))  # fmt: skip
        assert found, f"{expression} finds nothing"
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in one["metric"] for one in found), f"{label} of {expression}"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_variables_and_annotations_find_something(name: str, prometheus: Prometheus) -> None:
    """The lists of tenants and devices are filled, and alarms are drawn over the graphs."""
    dashboard = DASHBOARDS[name]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        assert all(match[2] in one["metric"] for one in prometheus.query(filled_in(match[1])))
        assert prometheus.query(filled_in(match[1]))
    assert dashboard["annotations"]["list"]
    for annotation in dashboard["annotations"]["list"]:
        assert drawn(prometheus, filled_in(annotation["expr"])), annotation["name"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_are_laid_out(name: str) -> None:
    """Each panel has a title, words, a unit and a place of its own on the grid."""
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${datasource}"
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        under = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or under, f"{one} and {other} overlap"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_alerts_are_those_of_the_chosen_tenants(name: str) -> None:
    """No other tenant's alert is counted or drawn; the cloud's are of no tenant."""
    chosen = {"fleet": 'tenant=~"$tenant|"', "device": 'tenant="$tenant",device="$device"'}[name]
    asked = re.findall(r"ALERTS\{([^}]*)\}", json.dumps(DASHBOARDS[name]).replace(r"\"", '"'))
    assert len(asked) >= 2
    assert [one for one in asked if chosen not in one] == []


def test_metrics_of_devices_exist() -> None:
    """No panel asks for a device's metric that the exporter does not write."""
    known = {metric.name for metric in METRICS.values()}
    text = "".join(path.read_text() for path in FILES)
    asked = set(re.findall(r"edgekit_device_\w+", text))
    assert asked <= known
    assert len(asked) > 40


def test_thresholds_are_those_of_the_alerts() -> None:
    """What a graph colours red is where the alert begins."""
    rules = (ROOT / "ota/prometheus/alerting.rules.yml").read_text()
    for panel in DASHBOARDS["device"]["panels"]:
        told = re.findall(r"[Aa]lert above ([\d.]+)", panel.get("description", ""))
        if not told:
            continue
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        (red,) = [step["value"] for step in steps if step["color"] == "red"]
        shown = float(told[0]) / (100 if red < 1 else 1)
        assert red == pytest.approx(shown)
        assert f" > {red:g}" in rules


def test_provisioning_names_what_ships() -> None:
    """Grafana finds data source and dashboards without a click."""
    source = read_yaml(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["type"] == "prometheus"
    provider = read_yaml(GRAFANA / "provisioning/dashboards/edgekit.yml")["providers"][0]
    compose = read_yaml(ROOT / "ota/compose/compose.yml")["services"]["grafana"]
    mounts = [mount for mount in compose["volumes"] if provider["options"]["path"] in mount]
    assert mounts == ["../grafana/dashboards:/var/lib/grafana/dashboards:ro"]
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS) == 2
