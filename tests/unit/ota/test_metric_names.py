"""The mapping from readings to metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.api.metrics import Metrics
from edgekit.contracts.series import NAME, SERIES
from ota.metrics.names import METRICS, metric_of

ROOT = Path(__file__).parents[3]
METRIC = re.compile(r"[a-z][a-z0-9_]*")
NOT_BASE = ("_percent", "_mhz", "_mw", "_ms", "_s", "_kb", "_mb")


def key_of(reading: str) -> tuple[object, ...] | None:
    found = metric_of(reading)
    return None if found is None else (found[0].name, tuple(sorted(found[1].items())))


def test_every_series_has_a_metric_of_its_own() -> None:
    """The mapping is total and no two series share a metric."""
    assert METRICS.keys() == SERIES.keys()
    names = [metric.name for metric in METRICS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("series", SERIES)
def test_names_follow_prometheus(series: str) -> None:
    """Base units, _total for counters alone, and labels that are free."""
    metric = METRICS[series]
    assert METRIC.fullmatch(metric.name)
    assert metric.name.startswith("edgekit_device_")
    assert not metric.name.endswith(NOT_BASE)
    assert metric.name.endswith("_total") == series.endswith("_total")
    assert metric.label == SERIES[series].label
    assert metric.label not in {"tenant", "device", "job", "instance", "site"}


@given(st.from_regex(NAME, fullmatch=True), st.from_regex(NAME, fullmatch=True))
def test_no_two_readings_are_one_series(one: str, other: str) -> None:
    """Readings that this release does not know get series of their own, or none."""
    if one != other and key_of(one) is not None:
        assert key_of(one) != key_of(other)


def test_a_name_that_is_taken_is_refused() -> None:
    """A newer agent's cpu_load_ratio does not mix with what cpu_load_percent became."""
    assert metric_of("cpu_load_ratio") is None
    assert key_of("fan_rpm.0") == ("edgekit_device_fan_rpm", (("label", "0"),))
    assert key_of("gpu_mhz") != key_of("gpu_mhz.1")


def test_units_are_converted() -> None:
    """Percent, MHz, mW and ms become ratios, hertz, watts and seconds; bytes stay."""
    readings = [
        ("cpu_load_percent", 17.3),
        ("cpu_mhz", 729.6),
        ("power_mw", -398),
        ("link_rtt_ms", 48.123),
        ("uptime_s", 86_400),
        ("memory_total_bytes", 65_868_398_592),
    ]
    found = {name: METRICS[name].value(number) for name, number in readings}
    assert found == pytest.approx(
        {
            "cpu_load_percent": 0.173,
            "cpu_mhz": 729_600_000.0,
            "power_mw": -0.398,
            "link_rtt_ms": 0.048123,
            "uptime_s": 86_400.0,
            "memory_total_bytes": 65_868_398_592.0,
        },
        rel=1e-15,
    )


def test_no_series_takes_two_paths() -> None:
    """What a device's server shows has no name that is written for the device, and none scraped."""
    served = {family.name for family in Metrics().registry.collect()}
    assert "edgekit_model_info" in served
    assert not any(name.startswith(("edgekit_device_", "edgekit_fleet_")) for name in served)


def test_docs_list_the_names_that_differ() -> None:
    """The table of docs/fleet-metrics.md has every series whose name or unit changes."""
    text = (ROOT / "docs/fleet-metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(edgekit_device_\w+)` \|", text, re.MULTILINE))
    changed = {
        name: metric.name
        for name, metric in METRICS.items()
        if metric.name != f"edgekit_device_{name}"
    }
    assert rows == changed
