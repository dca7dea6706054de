"""The fleet's word in the agent's object: it holds before anything is served, and ends nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_cases import KEY, Device1, FakeClock, answer, configuration, signed, trusting

from device.agent import fleet as fleet_module
from device.agent.agent import Agent
from device.agent.config import AgentConfig, parse_config
from device.agent.records import OURS, Records
from device.diagnostics.tail import LogTail
from device.remote.assembly import local_of
from device.remote.config import parse_fleet
from device.remote.puller import Puller
from device.routing.policy import Policy
from edgekit.errors import ConfigError, TelemetryError, TrustError

TELEMETRY: dict[str, Any] = {
    "broker": "broker.example",
    "ca": "/ca.pem",
    "certificate": "/device.pem",
    "key": "/device-key.pem",
    "tenant": "acme",
    "device": "orin-1",
    "daily_bytes": 500_000,
    "alarms": {"disk": False, "temperature": {"raise_above": 80, "clear_below": 70}},
}
SETTINGS: dict[str, Any] = {
    "routing": {"daily_bytes": 10, "local_clients": ["192.0.2.1"]},
    "telemetry": {"sample_s": 30, "probe_daily_bytes": 0},
    "alarms": {"temperature": {"raise_above": 75}},
    "log": {"level": "error"},
}


def config_in(folder: Path, **tables: Any) -> AgentConfig:
    """Return an agent's configuration with files in a folder."""
    routing = {
        "enabled": True,
        "base_url": "https://api.example.com/v1",
        "model": "big",
        "state_file": f"{folder}/budget.json",
        "daily_bytes": 1000,
    }
    fleet = {
        "url": "https://fleet.example",
        "cohorts": ["eu"],
        "trusted_keys": f"{folder}/trusted.json",
        "state_file": f"{folder}/remote.json",
    }
    told = {"serve": {"log": "off"}, "routing": routing, "telemetry": TELEMETRY, "fleet": fleet}
    return parse_config({**told, **tables})


@contextlib.contextmanager
def agent_of(config: AgentConfig) -> Iterator[Agent]:
    """Make an agent that does not run, and close what it has opened."""
    agent = Agent(config, clock=FakeClock())
    try:
        yield agent
    finally:
        if agent.models.settings.router is not None:
            agent.models.settings.router.budget.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device that has taken up a configuration, and its trusted keys."""
    device = Device1(tmp_path / "remote.json", local=local_of(config_in(tmp_path)))
    device.start().take(answer(signed(configuration(SETTINGS))))
    (tmp_path / "trusted.json").write_bytes(trusting(KEY).to_bytes())
    return tmp_path


def test_what_was_taken_up_holds_before_anything_is_served(folder: Path) -> None:
    """Routing and telemetry are as the file says that was remembered; the rest is the owner's."""
    with agent_of(config_in(folder)) as agent:
        router, fleet = agent.models.settings.router, agent._fleet
        assert router is not None
        assert router.policy == Policy(daily_bytes=10, local_clients=frozenset({"192.0.2.1"}))
        assert router.budget.limit == 10
        assert fleet is not None
        assert fleet.tuning is not None
        assert (fleet.tuning.sample_s, fleet.tuning.batch_s) == (30, 600)
        assert (fleet.tuning.daily_bytes, fleet.tuning.probe_daily_bytes) == (500_000, 0)
        assert "disk" not in fleet.tuning.rules
        rule = fleet.tuning.rules["temperature"]
        assert (rule.raise_above, rule.clear_below) == (75, 70)


def test_one_that_comes_later_holds_at_once(folder: Path) -> None:
    """It takes the place of the one before, and never gives more than the owner does."""
    with agent_of(config_in(folder)) as agent:
        router, fleet = agent.models.settings.router, agent._fleet
        assert router is not None
        assert fleet is not None
        before = fleet.tuning
        looser = configuration({"routing": {"daily_bytes": 10**9}}, 2)
        fleet.remote.take(answer(signed(looser)))
        assert router.policy == Policy(daily_bytes=1000)
        assert fleet.tuning is not before
        assert fleet.tuning == config_in(folder).telemetry.tuning  # type: ignore[union-attr]
        fleet.remote.take(answer(signed(configuration({"routing": {"cloud": False}}, 3))))
        assert not router.policy.cloud


def test_without_telemetry_there_is_no_live_mode(folder: Path) -> None:
    """The command fails and is told; routing is tightened all the same."""
    alone = {"url": "https://fleet.example", "tenant": "acme", "device": "orin-1"}
    files = {"certificate": "/c", "key": "/k", "ca_file": "/a"}
    kept = {"trusted_keys": f"{folder}/trusted.json", "state_file": f"{folder}/remote.json"}
    told = {"serve": {"log": "off"}, "fleet": {**alone, **files, **kept}}
    with agent_of(parse_config(told)) as agent:
        assert agent._fleet is not None
        assert agent._fleet.tuning is None
        with pytest.raises(TelemetryError, match="no table"):
            agent._go_live(60.0)
        with pytest.raises(TelemetryError, match="no table"):
            agent._readings()


def test_an_agent_without_trusted_keys_does_not_start(folder: Path) -> None:
    """It could not know what was forbidden, nor take anybody's word."""
    (folder / "trusted.json").unlink()
    with pytest.raises(TrustError, match="cannot read the trusted keys"):
        Agent(config_in(folder, routing={**_routing(folder), "enabled": False}))


def _routing(folder: Path) -> dict[str, Any]:
    return {
        "base_url": "https://api.example.com/v1",
        "model": "big",
        "state_file": f"{folder}/budget.json",
        "daily_bytes": 1000,
    }


def test_a_fault_of_ours_ends_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and documents are looked for again."""
    tries, again = list[int](), asyncio.Event()

    async def fail(_: Puller) -> None:
        tries.append(1)
        if len(tries) == 3:
            again.set()
            await asyncio.sleep(60)
        raise ZeroDivisionError

    async def watch(running: fleet_module.Fleet) -> None:
        task = asyncio.create_task(running.run())
        await again.wait()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(Puller, "run", fail)
    monkeypatch.setattr(fleet_module, "RETRY_S", 0.0)
    with agent_of(config_in(folder)) as agent:
        assert agent._fleet is not None
        asyncio.run(asyncio.wait_for(watch(agent._fleet), 10))
    assert caplog.text.count("looking for documents failed") == 2


def test_records_are_kept_and_written_by_their_level(capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the log has what is informative; standard error from the level on that was set."""
    tail, logger = LogTail(), logging.getLogger("device.test")
    before = [logging.getLogger(name).level for name in OURS]
    with Records(tail) as records:
        for level in (None, "error", "debug"):
            records.set_level(level)
            for write in (logger.debug, logger.info, logger.warning, logger.error):
                write("%s at %s", write.__name__, level)
    logger.error("after the end")
    assert capsys.readouterr().err.splitlines() == [
        *("warning at None", "error at None", "error at error"),
        *(f"{name} at debug" for name in ("debug", "info", "warning", "error")),
    ]
    assert [("debug" in line, "info at error" in line) for line in tail.lines()].count(
        (False, True)
    ) == 1
    assert len(tail.lines()) == 10
    assert [logging.getLogger(name).level for name in OURS] == before


def test_the_fleets_table_takes_what_it_does_not_say(folder: Path) -> None:
    """Who the device is and its files are in ``[telemetry]``; what is said here counts."""
    fleet = config_in(folder).fleet
    assert fleet is not None
    assert fleet.identity.path == "acme/device/orin-1"
    assert (fleet.ca_file, fleet.certificate, fleet.key) == (
        *("/ca.pem", "/device.pem", "/device-key.pem"),
    )
    own = {"url": "https://fleet.example", "ca_file": "/other.pem", "device": "orin-1"}
    assert parse_config({"telemetry": TELEMETRY, "fleet": own}).fleet.ca_file == "/other.pem"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="lacks tenant"):
        parse_fleet(own)


@pytest.mark.parametrize("other", [{"tenant": "umbrella"}, {"device": "orin-2"}])
def test_two_tables_name_one_device(other: dict[str, str]) -> None:
    """Else its certificate would be wrong for one of them."""
    told = {"telemetry": TELEMETRY, "fleet": {"url": "https://fleet.example", **other}}
    with pytest.raises(ConfigError, match=r"\[fleet\] is of .*, \[telemetry\] of acme/device"):
        parse_config(told)
