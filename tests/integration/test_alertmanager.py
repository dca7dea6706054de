"""The shipped routes and inhibitions in a real Alertmanager, and an alarm's way to a page."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from metrics_cases import ListSource, alarm_of, device_of
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_server import SHIPPED, Alertmanager, Prometheus
from serve_cases import wait_until
from webhook import Webhook
from yaml_files import read_yaml

from ota.metrics.live import FleetCollector


def alert(name: str, device: str = "", **labels: str) -> dict[str, str]:
    """Return an alert's labels, its severity as shipped."""
    groups = read_yaml(SHIPPED / "alerting.rules.yml")["groups"]
    (rule,) = [rule for group in groups for rule in group["rules"] if rule["alert"] == name]
    found = {"alertname": name, **rule.get("labels", {}), **labels}
    return {**found, "device": device} if device else found


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Webhook, Alertmanager]]:
    with Webhook() as webhook, Alertmanager(tmp_path, webhook.port, group_wait="300ms") as server:
        yield webhook, server


ACME = {"tenant": "acme"}
NORTH = {"tenant": "acme", "site": "north"}
OUTAGES: Mapping[str, tuple[list[dict[str, str]], list[str]]] = {
    "fleet": (
        [
            alert("EdgekitFleetSilent", **ACME),
            alert("EdgekitSiteSilent", **NORTH),
            *(alert("EdgekitDeviceSilent", f"orin-{n}", **NORTH) for n in range(6)),
            alert("EdgekitDeviceSilent", "orin-9", tenant="other"),
        ],
        ["EdgekitDeviceSilent orin-9", "EdgekitFleetSilent"],
    ),
    "site": (
        [
            alert("EdgekitSiteSilent", **NORTH),
            alert("EdgekitDeviceSilent", "orin-1", **NORTH),
            alert("EdgekitDeviceSilent", "orin-2", tenant="acme", site="south"),
            alert("EdgekitDeviceSilent", "orin-3", **ACME),
        ],
        ["EdgekitDeviceSilent orin-2", "EdgekitDeviceSilent orin-3", "EdgekitSiteSilent"],
    ),
    "ingest": (
        [
            alert("EdgekitIngestDown"),
            alert("EdgekitBrokerDown"),
            alert("EdgekitExportLagging"),
            alert("EdgekitFleetSilent", **ACME),
            alert("EdgekitDeviceSilent", "orin-1", **ACME),
            alert("EdgekitTemperatureHigh", "orin-1", **ACME),
        ],
        ["EdgekitIngestDown", "EdgekitTemperatureHigh orin-1"],
    ),
    "device": (
        [
            alert("EdgekitDeviceSilent", "orin-1", **ACME),
            alert("EdgekitPacketLoss", "orin-1", **ACME),
            alert("EdgekitPacketLoss", "orin-2", **ACME),
        ],
        ["EdgekitDeviceSilent orin-1", "EdgekitPacketLoss orin-2"],
    ),
    "heat": (
        [
            alert("EdgekitTemperatureHigh", "orin-1", **ACME),
            alert("EdgekitThrottling", "orin-1", **ACME),
            alert("EdgekitThrottling", "orin-2", **ACME),
            alert("EdgekitUnifiedMemoryHigh", "orin-1", **ACME),
            alert("EdgekitGpuMemoryHigh", "orin-1", **ACME),
        ],
        [
            "EdgekitTemperatureHigh orin-1",
            "EdgekitThrottling orin-2",
            "EdgekitUnifiedMemoryHigh orin-1",
        ],
    ),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_one_outage_is_one_page(parts: tuple[Webhook, Alertmanager], outage: str) -> None:
    """What follows from another alert is held back, and nothing else is."""
    webhook, server = parts
    sent, expected = OUTAGES[outage]
    server.post(*sent)
    wait_until(lambda: webhook.names("/page") == expected, 10, str(webhook.told))
    time.sleep(1.5)
    assert webhook.names("/page") == expected
    assert webhook.names("/ticket") == []


def test_severities_go_where_they_should(parts: tuple[Webhook, Alertmanager]) -> None:
    """Critical and major page, minor and warning do not, and the watchdog has its own receiver."""
    webhook, server = parts
    server.post(
        alert("EdgekitUnifiedMemoryHigh", "orin-1", **ACME),
        alert("EdgekitDiskFull", "orin-1", **ACME),
        alert("EdgekitStorageWorn", "orin-1", **ACME),
        alert("EdgekitTelemetryDropped", "orin-1", **ACME),
        alert("EdgekitDeviceAlarm", "orin-1", severity="warning", alarm="fan", **ACME),
        alert("EdgekitWatchdog"),
    )
    wait_until(lambda: len(webhook.names("/ticket")) == 3 and bool(webhook.names("/watchdog")), 10)
    wait_until(lambda: len(webhook.names("/page")) == 2, 10)
    assert webhook.names("/page") == [
        "EdgekitDiskFull orin-1",
        "EdgekitUnifiedMemoryHigh orin-1",
    ]
    assert webhook.names("/watchdog") == ["EdgekitWatchdog"]


@pytest.mark.slow
def test_from_a_devices_alarm_to_a_page(tmp_path: Path) -> None:
    """An alarm that the store has is a page within 75 s, at the shipped intervals, and is one."""
    source = ListSource(known=[device_of("orin-1", time.time_ns() // 1_000_000)])
    registry = CollectorRegistry()
    registry.register(FleetCollector(source))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        with (
            Webhook() as webhook,
            Alertmanager(tmp_path / "a", webhook.port) as manager,
            Prometheus(
                tmp_path / "p",
                targets={"edgekit-export": server.server_port},
                alertmanager=manager.port,
            ) as prometheus,
        ):
            wait_until(lambda: prometheus.value("edgekit_fleet_device_up") == 1, 30)
            begin_s = time.time()
            source.alarms = [alarm_of("orin-1", "temperature", "temperature_celsius.gpu")]
            fires = ("EdgekitTemperatureHigh", "orin-1")
            wait_until(lambda: fires in prometheus.firing(), 45)
            fired_s = time.time() - begin_s
            wait_until(lambda: bool(webhook.names("/page")), 60)
            paged_s = time.time() - begin_s
            print(f"fires after {fired_s:.1f} s, paged after {paged_s:.1f} s")  # noqa: T201
            assert fired_s <= 36
            assert paged_s <= 75
            (page,) = [document for path, _, document in webhook.told if path == "/page"]
            (told,) = page["alerts"]
            assert re.fullmatch(r"docs/alerts\.md#\w+", told["annotations"]["runbook_url"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
