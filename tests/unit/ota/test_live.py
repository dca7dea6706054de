"""The fleet of now, as Prometheus scrapes it."""

from __future__ import annotations

import pytest
from metrics_cases import ListSource, alarm_of, device_of
from prometheus_client import CollectorRegistry, generate_latest

from edgekit.errors import StoreAwayError
from ota.metrics.live import FleetCollector
from ota.metrics.source import Facts, Validity

ORIN_1 = {"tenant": "acme", "device": "orin-1"}


def registry_of(
    source: ListSource, facts: Facts | None = None, clock: list[float] | None = None
) -> CollectorRegistry:
    registry = CollectorRegistry()
    now = clock or [0.0]
    registry.register(FleetCollector(source, facts=lambda: facts or Facts(), clock=lambda: now[0]))
    return registry


def test_devices_are_told() -> None:
    """When each was heard by our clock, whether it is connected, its site and version."""
    source = ListSource(known=[
        device_of("orin-1", 1_784_970_508_123, site="north", edgekit="1.4"),
        device_of("orin-2", 1_784_970_000_000, "down"),
        device_of("orin-3", 1_784_970_000_000, None),
    ])  # fmt: skip
    registry = registry_of(source)
    get = registry.get_sample_value
    assert get("edgekit_fleet_device_last_seen_timestamp_seconds", ORIN_1) == 1_784_970_508.123
    up = [get("edgekit_fleet_device_up", {**ORIN_1, "device": f"orin-{n}"}) for n in (1, 2, 3)]
    assert up == [1, 0, None]
    info = {**ORIN_1, "site": "north", "version": "1.4", "board": ""}
    assert get("edgekit_fleet_device_info", info) == 1
    assert b'board="",device="orin-3",site="",tenant="acme",version=""' in generate_latest(registry)


def test_an_alarm_of_two_boots_is_one() -> None:
    """An alarm is a series once, whatever boots have raised it; one that ended is none."""
    hot = alarm_of("orin-1", "temperature", "temperature_celsius.cpu")
    source = ListSource(alarms=[hot, hot])
    labels = {**ORIN_1, "alarm": "temperature", "reading": "temperature_celsius.cpu"}
    registry = registry_of(source)
    assert (
        registry.get_sample_value("edgekit_fleet_alarm_active", {**labels, "severity": "major"})
        == 1
    )
    source.alarms = []
    assert b"temperature_celsius" not in generate_latest(registry_of(source))


def test_facts_are_told_when_known() -> None:
    """Certificates, metadata and rollbacks have series if somebody knows them, else none."""
    source = ListSource(known=[device_of("orin-1", 0)])
    assert b"edgekit_fleet_certificate_not_after_timestamp_seconds{" not in generate_latest(
        registry_of(source)
    )
    facts = Facts(
        certificates={("acme", "orin-1"): Validity(1.0, 2.0)},
        metadata={"timestamp": Validity(3.0, 4.0)},
        rollbacks={("acme", "orin-1"): 0},
    )
    get = registry_of(source, facts).get_sample_value
    assert get("edgekit_fleet_certificate_not_before_timestamp_seconds", ORIN_1) == 1
    assert get("edgekit_fleet_certificate_not_after_timestamp_seconds", ORIN_1) == 2
    assert get("edgekit_fleet_metadata_signed_timestamp_seconds", {"role": "timestamp"}) == 3
    assert get("edgekit_fleet_metadata_expires_timestamp_seconds", {"role": "timestamp"}) == 4
    assert get("edgekit_fleet_rollbacks_total", ORIN_1) == 0


def test_the_store_is_asked_once_in_some_seconds() -> None:
    """Many who scrape cost the store no more than one; later it is asked again."""
    source, clock = ListSource(known=[device_of("orin-1", 0)]), [0.0]
    registry = registry_of(source, clock=clock)
    assert source.asked == 0
    for clock[0] in (0.0, 1.0, 4.9):
        generate_latest(registry)
    assert source.asked == 2
    clock[0] = 5.0
    generate_latest(registry)
    assert source.asked == 4


def test_a_store_that_is_away_fails_the_scrape() -> None:
    """Old numbers are not passed off as those of now."""
    source, clock = ListSource(known=[device_of("orin-1", 0)]), [0.0]
    registry = registry_of(source, clock=clock)
    generate_latest(registry)
    source.away, clock[0] = True, 6.0
    with pytest.raises(StoreAwayError):
        generate_latest(registry)
