"""The table ``[telemetry]``: strict, and its documentation has every key."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from device.agent.config import parse_config
from device.telemetry.config import TelemetryConfig, parse_telemetry
from edgekit.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs/telemetry.md"
LEAST: dict[str, Any] = {
    "broker": "broker.example",
    "ca": "/etc/edgekit/broker-ca.pem",
    "certificate": "/etc/edgekit/device.pem",
    "key": "/etc/edgekit/device-key.pem",
    "tenant": "acme",
    "device": "orin-1",
}


def test_the_least_is_enough() -> None:
    """Everything else has a default, among it all alarms."""
    config = parse_config({"telemetry": LEAST}).telemetry
    assert config is not None
    assert config.identity.path == "acme/device/orin-1"
    assert (config.port, config.batch_s) == (8883, 600.0)
    assert "packet_loss" in config.alarms
    assert parse_config({}).telemetry is None


def test_types_are_those_of_the_fields() -> None:
    """A whole number is a number of seconds, paths are paths, rules replace rules."""
    more = {"sample_s": 30, "site": "hall-7", "probe": "192.0.2.1:7", "alarms": {"disk": False}}
    config = parse_telemetry({**LEAST, **more})
    assert type(config.sample_s) is float
    assert config.site == "hall-7"
    assert config.key == Path("/etc/edgekit/device-key.pem")
    assert config.probe_address == ("192.0.2.1", 7)
    assert "disk" not in config.alarms


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"brocker": 1}, "unknown key 'brocker'"),
        ({"port": "8883"}, "port must be of type int, got '8883'"),
        ({"port": 0}, "port is 0, and must be 1 to 65535"),
        ({"port": True}, "port must be of type int"),
        ({"broker": ""}, "broker is empty"),
        ({"tenant": "a/b"}, "tenant 'a/b' is not"),
        ({"device": "x" * 60}, "characters, a certificate's name 64"),
        ({"encoding": "gzip"}, "encoding 'gzip' is none of"),
        ({"sample_s": float("nan")}, "sample_s must be 0 to"),
        ({"batch_s": 5.0}, "batch_s is 5.0, and must be 10"),
        ({"sample_s": 60, "batch_s": 20}, "is below sample_s"),
        ({"daily_bytes": 1000}, "daily_bytes is 1000"),
        ({"probe": "echo.example:7"}, "is not ADDRESS:PORT"),
        ({"probe": "192.0.2.1"}, "is not ADDRESS:PORT"),
        ({"alarms": {"disk": {"raise_above": 0.1}}}, "clear_below is not below"),
        ({"alarms": 3}, "alarms is not a table"),
        ({"alarms": {"x": {"series": ["uptime_s"], "raise_above": 1, "clear_below": 0}}}, "series"),
        ({"site": "hall 7"}, "site 'hall 7' is not 1 to 64"),
        ({"site": ""}, "site '' is not 1 to 64"),
        ({"site": 7}, "site must be of type str"),
    ],
)
def test_what_means_nothing_is_named(changes: dict[str, Any], said: str) -> None:
    """One line with the key and the value."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_config({"telemetry": {**LEAST, **changes}})


@pytest.mark.parametrize("name", sorted(LEAST))
def test_a_missing_key_is_named(name: str) -> None:
    """Of those without a default."""
    table = {key: value for key, value in LEAST.items() if key != name}
    with pytest.raises(ConfigError, match=rf"lacks {name}"):
        parse_telemetry(table)


def test_the_documentation_has_every_key_with_its_default() -> None:
    """docs/telemetry.md: a row a key."""
    part = DOCS.read_text().partition("## The device's side")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", part, re.MULTILINE)
    assert [name for name, _ in rows] == [one.name for one in fields(TelemetryConfig)]
    config = parse_telemetry(LEAST)
    for name, default in rows:
        if default and name not in LEAST and name != "alarms":
            value = getattr(config, name)
            assert default.strip('`"') == str(value).lower(), name
