"""The table [routing]: strict, and shut unless it says otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from device.agent.config import parse_config
from device.routing.config import RoutingConfig, load_routing, parse_routing
from device.routing.policy import Policy
from edgekit.errors import ConfigError, StorageError

LEAST: dict[str, Any] = {
    "base_url": "https://api.example.com/v1",
    "model": "big",
    "state_file": "/var/lib/edgekit/budget.json",
    "daily_bytes": 1000,
}


def test_it_is_off_unless_enabled() -> None:
    """The least table lets nothing go; what is enabled goes as its keys say."""
    config = parse_routing(LEAST)
    assert config.policy == Policy(cloud=False, daily_bytes=1000)
    assert config.wait_limit_s == math.inf
    assert config.api_key() is None
    more = {"enabled": True, "reasons": ["queue"], "local_clients": ["camera"], "max_wait_s": 3}
    config = parse_routing({**LEAST, **more})
    assert config.policy == Policy(
        reasons=frozenset({"queue"}), daily_bytes=1000, local_clients=frozenset({"camera"})
    )
    assert config.max_wait_s == 3.0
    assert isinstance(config.max_wait_s, float)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"enable": True}, r"unknown key 'enable'. Did you mean 'enabled'\?"),
        ({"enabled": "yes"}, "enabled must be of type bool, got 'yes'"),
        ({"daily_bytes": 1.5}, "daily_bytes must be of type int"),
        ({"max_wait_s": -1.0}, "max_wait_s must be 0 to"),
        ({"max_wait_s": math.nan}, "max_wait_s must be 0 to"),
        ({"failures": 0}, "failures must be above 0"),
        ({"reasons": ["cost"]}, "reasons has 'cost'. Use: context, queue"),
        ({"local_clients": [1]}, "must be an array of strings"),
        ({"model": ""}, "model is empty"),
        ({"base_url": "http://api.example.com/v1"}, "is not https"),
        ({"base_url": "http://localhost.example.com/v1"}, "is not https"),
        ({"base_url": "ftp://api.example.com/v1"}, "is not https"),
        ({"base_url": "https://me:secret@api.example.com/v1"}, "is no plain URL"),
        ({"base_url": "https://api.example.com/v1?key=1"}, "is no plain URL"),
        ({"base_url": "https:///v1"}, "is no plain URL"),
        ({"base_url": "https://[::1/v1"}, "is no URL"),
        ({"base_url": "https://api.example.com:port/v1"}, "is no URL"),
    ],
)
def test_what_is_wrong_is_named(changed: dict[str, Any], said: str) -> None:
    """Key, value and what to write instead; no secret of a URL."""
    with pytest.raises(ConfigError, match=said) as caught:
        parse_routing({**LEAST, **changed})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", sorted(LEAST))
def test_what_has_no_default_must_be_given(key: str) -> None:
    """Endpoint, model, budget and its file."""
    with pytest.raises(ConfigError, match=f"lacks {key}"):
        parse_routing({k: v for k, v in LEAST.items() if k != key})


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://[::1]:8000/v1"])
def test_this_machine_may_be_asked_in_the_clear(url: str) -> None:
    """As a gateway beside the server is."""
    assert parse_routing({**LEAST, "base_url": url}).base_url == url


def test_a_file_has_the_table_and_nothing_else(tmp_path: Path) -> None:
    """The documented one is read; others are refused by what is wrong with them."""
    path = tmp_path / "routing.toml"
    documented = (Path(__file__).parents[3] / "docs" / "routing.md").read_text()
    (block,) = [b for b in documented.split("```") if b.startswith("toml\n[routing]")]
    path.write_text(block.removeprefix("toml\n"))
    assert isinstance(load_routing(path), RoutingConfig)
    for text, said in (
        ("[routing", "is not valid TOML"),
        ("", r"has no table \[routing\]"),
        ("routing = 1", r"has no table \[routing\]"),
        ("[router]\n[routing]", "has 'router' at its top level"),
        ("[routing]", "lacks base_url"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_routing(path)
    with pytest.raises(ConfigError, match="Choose another --routing"):
        load_routing(tmp_path)


def test_every_key_is_documented() -> None:
    """By its name, in code."""
    text = (Path(__file__).parents[3] / "docs" / "routing.md").read_text()
    missing = [key for key in RoutingConfig.__dataclass_fields__ if f"`{key}`" not in text]
    assert not missing


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "k\x00y", "schlüssel"])
def test_a_key_is_one_word(tmp_path: Path, text: str) -> None:
    """What would not fit a header is refused, and not shown."""
    path = tmp_path / "key"
    path.write_text(text)
    config = parse_routing({**LEAST, "api_key_file": str(path)})
    with pytest.raises(StorageError, match="is not one key on one line"):
        config.api_key()
    path.write_text(" sk-1\n")
    assert config.api_key() == "sk-1"
    path.unlink()
    with pytest.raises(StorageError, match="cannot read"):
        config.api_key()


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, and one without certificates."""
    (tmp_path / "empty.pem").write_text("")
    for name in ("none.pem", "empty.pem"):
        config = parse_routing({**LEAST, "ca_file": str(tmp_path / name)})
        with pytest.raises(StorageError, match=f"certificates of .*{name}"):
            config.tls()


def test_the_agents_file_has_the_same_table() -> None:
    """Strict there as well; without it, or without enabled, nothing is routed."""
    assert parse_config({}).settings().router is None
    found = parse_config({"serve": {"port": 1}, "routing": LEAST})
    assert found.routing == parse_routing(LEAST)
    assert found.settings().router is None
    for data in ({"serve": {"routing": LEAST}}, {"routing": {**LEAST, "x": 1}}, {"routing": 1}):
        with pytest.raises(ConfigError):
            parse_config(data)


def test_who_is_pinned_must_be_someone(tmp_path: Path) -> None:
    """A misspelt client would pin nothing: names need a key, and without keys it is an address."""
    keys = tmp_path / "keys"
    keys.write_text(f"camera {'ab' * 32}\n")
    routing = {**LEAST, "local_clients": ["camra"]}
    told = {"serve": {"api_keys": str(keys)}, "routing": routing}
    with pytest.raises(ConfigError, match=r"'camra'.*has no API key\. .*camera"):
        parse_config(told).settings()
    with pytest.raises(ConfigError, match=r"'camra'.*is no address"):
        parse_config({"routing": routing}).settings()
    routing["local_clients"] = ["10.0.0.1"]
    with pytest.raises(ConfigError, match="has no API key"):
        parse_config(told).settings()
    assert parse_config({"routing": routing}).settings().router is None
    routing["local_clients"] = ["camera"]
    assert parse_config(told).settings().keys
