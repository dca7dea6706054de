"""From a device's own birth and goodbye to what Prometheus scrapes: nothing is lost on the way."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet_cases import DEVICE, START_MS, arrived
from metrics_cases import device_of
from mqtt_certificates import Authority
from prometheus_client import CollectorRegistry, generate_latest

from device.telemetry.clock import SystemClock
from device.telemetry.config import TelemetryConfig
from device.telemetry.identity import certificate_details, identity_details
from device.telemetry.mqtt.health import Healths, machine_details
from ota.ingest.messages import read_message
from ota.metrics.live import FleetCollector
from ota.metrics.source import StoreSource, birth_certificates
from ota.store.commit import Writer
from ota.store.database import Store, connect
from ota.store.items import NewHealth
from ota.store.schema import migrate

LABELS = {"tenant": DEVICE.tenant, "device": DEVICE.device}
CERTIFICATE = "edgekit_fleet_certificate"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(connect(f"sqlite:///{tmp_path}/store.db")) as opened:
        migrate(opened)
        yield opened


def configured(certificate: Path, site: str | None = None) -> TelemetryConfig:
    """Return what a device is told."""
    return TelemetryConfig(
        broker="broker.example",
        ca=certificate,
        certificate=certificate,
        key=certificate,
        tenant=DEVICE.tenant,
        device=DEVICE.device,
        site=site,
    )


def healths_of(config: TelemetryConfig) -> Healths:
    """Return what writes a device's births, on its first connection."""
    healths = Healths(
        config.identity,
        lambda: "1f0a52c3d4e5b6a7-3f9c01d2",
        SystemClock(),
        tuple,
        lambda: {**machine_details(), **identity_details(config)},
    )
    healths.will()
    return healths


def take_in(store: Store, *payloads: bytes) -> None:
    """Store messages as a worker does."""
    for payload in payloads:
        item = read_message(arrived("status/health", payload))
        assert isinstance(item, NewHealth)
        Writer(store).commit([item])


def scraped(store: Store) -> Callable[[str, dict[str, str]], float | None]:
    registry = CollectorRegistry()
    registry.register(FleetCollector(StoreSource(store)))
    return registry.get_sample_value


def test_a_site_reaches_the_metric(store: Store, tmp_path: Path) -> None:
    """The key of [telemetry] is the label by which sites fall silent; without it that is empty."""
    config = configured(tmp_path / "none.pem", site="hall-7")
    take_in(store, healths_of(config).birth())
    details = machine_details()
    info = {**LABELS, "version": str(details["edgekit"]), "board": str(details["board"] or "")}
    assert scraped(store)("edgekit_fleet_device_info", {**info, "site": "hall-7"}) == 1
    later = healths_of(configured(tmp_path / "none.pem"))
    later.will()
    take_in(store, later.birth())
    assert scraped(store)("edgekit_fleet_device_info", {**info, "site": ""}) == 1
    assert scraped(store)("edgekit_fleet_device_info", {**info, "site": "hall-7"}) is None


def test_a_certificates_life_reaches_the_metrics(store: Store, tmp_path: Path) -> None:
    """Begin and end in seconds since 1970, to the second, of the certificate that is in use."""
    now_s = dt.datetime.now(dt.timezone.utc).timestamp()
    issued = Authority(tmp_path, "devices").issue(DEVICE.path, lifetime=dt.timedelta(days=90))
    take_in(store, healths_of(configured(issued.certificate)).birth())
    get = scraped(store)
    begin = get(f"{CERTIFICATE}_not_before_timestamp_seconds", LABELS)
    end = get(f"{CERTIFICATE}_not_after_timestamp_seconds", LABELS)
    assert begin == pytest.approx(now_s - 3600, abs=5)
    assert end == pytest.approx(now_s + 90 * 86_400, abs=5)


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\x00", "key", "cut"])
def test_a_certificate_that_cannot_be_read_is_missing(
    store: Store, tmp_path: Path, content: bytes | str | None
) -> None:
    """The birth is sent all the same, and no metric claims a time."""
    issued = Authority(tmp_path, "devices").issue(DEVICE.path)
    path = tmp_path / "device.pem"
    if content == "key":
        path = issued.key
    elif content == "cut":
        path.write_bytes(issued.certificate.read_bytes().replace(b"MII", b"MIA", 1))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    names = ("certificate_not_before_ms", "certificate_not_after_ms")
    assert certificate_details(path) == dict.fromkeys(names)
    take_in(store, healths_of(configured(path)).birth())
    assert scraped(store)("edgekit_fleet_device_up", LABELS) == 1
    assert scraped(store)(f"{CERTIFICATE}_not_after_timestamp_seconds", LABELS) is None


@pytest.mark.parametrize(
    "details",
    [
        {"certificate_not_after_ms": START_MS},
        {"certificate_not_before_ms": START_MS, "certificate_not_after_ms": START_MS},
        {"certificate_not_before_ms": "2026-01-01", "certificate_not_after_ms": "2027-01-01"},
    ],
)
def test_what_is_no_life_is_left_out(details: dict[str, str | int]) -> None:
    """A birth that tells half of it, none, or words does not fail the scrape of the others."""
    good = {"certificate_not_before_ms": 1000, "certificate_not_after_ms": 2000}
    found = birth_certificates(
        [device_of("bad", 0, "up", None, **details), device_of("good", 0, "up", None, **good)]
    )
    assert [(key, one.begin_s, one.end_s) for key, one in found.items()] == [
        (("acme", "good"), 1.0, 2.0)
    ]


def test_a_goodbye_is_told_from_a_loss(store: Store, tmp_path: Path) -> None:
    """Stopped, lost, and up again: one series at a time, and none while it is up."""
    healths = healths_of(configured(tmp_path / "none.pem"))
    down = "edgekit_fleet_device_down"
    take_in(store, healths.birth(), healths.goodbye())
    assert scraped(store)(down, {**LABELS, "reason": "stopped"}) == 1
    _, will = healths.will()
    take_in(store, healths.birth())
    assert scraped(store)(down, {**LABELS, "reason": "stopped"}) is None
    assert scraped(store)("edgekit_fleet_device_up", LABELS) == 1
    take_in(store, will)
    assert json.loads(will)["details"]["reason"] == "lost"
    assert scraped(store)(down, {**LABELS, "reason": "lost"}) == 1
    registry = CollectorRegistry()
    registry.register(FleetCollector(StoreSource(store)))
    assert generate_latest(registry).count(b"edgekit_fleet_device_down{") == 1
