"""``python -m device config``: what holds is shown, and its owner may have it forgotten."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from remote_cases import KEY, STRANGER, Device1, FakeClock, answer, configuration, signed, trusting

from device.__main__ import main
from device.agent.config import parse_config, read_config
from device.remote.assembly import bundle_parts, local_of, make_puller, make_remote
from device.remote.effective import CLOSED, Effective
from edgekit.errors import ConfigError


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    """Return the file of an agent that has taken up a configuration."""
    now_ms = time.time_ns() // 1_000_000
    device = Device1(tmp_path / "remote.json", clock=FakeClock(now_ms))
    tight = configuration(
        {"routing": {"cloud": False}, "telemetry": {"sample_s": 30}}, 4, expires_ms=now_ms + 9999
    )
    device.start().take(answer(signed(tight)))
    (tmp_path / "trusted.json").write_bytes(trusting(KEY).to_bytes())
    path = tmp_path / "agent.toml"
    path.write_text(
        f"""
[routing]
enabled = true
base_url = "https://api.example.com/v1"
model = "m"
state_file = "{tmp_path}/budget.json"
daily_bytes = 5000

[fleet]
url = "https://fleet.example:8443"
tenant = "acme"
device = "orin-1"
certificate = "/c"
key = "/k"
ca_file = "/a"
cohorts = ["eu"]
trusted_keys = "{tmp_path}/trusted.json"
state_file = "{tmp_path}/remote.json"
"""
    )
    return path


def test_what_holds_is_shown_and_can_be_forgotten(
    agent_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The owner sees the policy that a document has tightened, and takes it back at the device."""
    assert main(["config", "show", "--config", str(agent_file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["device"] == "acme/device/orin-1"
    assert told["effective"]["routing"]["cloud"] is False
    assert told["effective"]["sample_s"] == 30
    assert [(row["audience"], row["counter"]) for row in told["documents"]] == [
        ("device:orin-1", 4)
    ]
    assert main(["config", "forget", "--config", str(agent_file)]) == 0
    assert main(["config", "show", "--config", str(agent_file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["effective"]["routing"] == {
        "cloud": True,
        "reasons": ["context", "queue"],
        "daily_bytes": 5000,
        "local_only": False,
        "local_clients": [],
    }
    assert told["documents"] == []


def test_what_the_owner_has_set_is_shown_where_no_document_says_other(
    agent_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How often and how much is told whoever said it; nothing that only a running agent knows."""
    with agent_file.open("a") as file:
        file.write(
            """
[telemetry]
broker = "b"
ca = "/a"
certificate = "/c"
key = "/k"
tenant = "acme"
device = "orin-1"
batch_s = 900
"""
        )
    assert main(["config", "show", "--config", str(agent_file)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["effective"]["sample_s"], told["effective"]["batch_s"]) == (30, 900)
    assert told["effective"]["daily_bytes"] == 4_000_000
    assert "outcomes" not in told


def test_without_the_table_the_file_alone_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is routed, nothing came from afar, and there is nothing to forget."""
    path = tmp_path / "agent.toml"
    path.write_text("[serve]\nport = 1\n")
    assert main(["config", "show", "--config", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["effective"]["routing"]["cloud"] is False
    assert main(["config", "forget", "--config", str(path)]) == ConfigError.exit_code
    assert "no table [fleet]" in capsys.readouterr().err


def test_an_agent_without_trusted_keys_says_so(
    agent_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Keys come with the installation: they are never fetched."""
    (tmp_path / "trusted.json").unlink()
    assert main(["config", "show", "--config", str(agent_file)]) == 18
    assert "cannot read the trusted keys" in capsys.readouterr().err


def test_a_wrong_table_is_told_with_its_file(
    agent_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent's file is read as strictly as ever."""
    agent_file.write_text(agent_file.read_text().replace("https://fleet", "http://fleet"))
    assert main(["config", "show", "--config", str(agent_file)]) == 15
    said = capsys.readouterr().err
    assert "agent.toml: [fleet]: url is not a plain https" in said


def test_the_parts_fit_together(agent_file: Path, tmp_path: Path) -> None:
    """What the agent calls makes a remote, a puller and a bundle of its configuration."""
    config = read_config(agent_file)
    assert config.fleet is not None
    local = local_of(config)
    assert local.leaks.policy.cloud
    assert local_of(parse_config({})).leaks == CLOSED
    held: list[Effective] = []
    remote = make_remote(config.fleet, local, FakeClock(), held.append)
    assert not held[0].leaks.policy.cloud
    parts = bundle_parts(config, lambda: ["{}"], lambda: {"uptime_s": 1}, remote)
    assert make_puller(config.fleet, remote, FakeClock(), lambda _: None, parts) is not None
    told = {part.name: part.read() for part in parts if part.kind == "facts"}
    assert told["remote.json"]["effective"]["routing"]["cloud"] is False
    assert told["config.json"]["fleet"]["tenant"] == "acme"
    (tmp_path / "trusted.json").write_bytes(trusting(STRANGER).to_bytes())
    closed = make_remote(config.fleet, local, FakeClock(), held.append)
    assert closed.effective.leaks == CLOSED


def test_an_agent_that_takes_nobodys_word_loads_nothing_for_it() -> None:
    """Without the table neither an HTTP client nor signatures take memory."""
    code = "import sys, device.__main__, device.agent.agent; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "device.remote.config" in done.stdout.split()
    assert not {"httpx", "cryptography", "numpy"} & set(done.stdout.split())


def test_the_owners_alarms_and_times_are_those_of_the_file(
    agent_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown as they are; what was taken up and makes no sense beside them any more closes."""
    table = """
[telemetry]
broker = "broker.example"
ca = "/a"
certificate = "/c"
key = "/k"
tenant = "acme"
device = "orin-1"
batch_s = {batch_s}
[telemetry.alarms]
disk = false
temperature = {{ raise_above = 70, clear_below = 60 }}
"""
    text = agent_file.read_text()
    for batch_s, cloud_counts in ((600, True), (20, False)):  # samples were to come every 30 s
        agent_file.write_text(text + table.format(batch_s=batch_s))
        assert main(["config", "show", "--config", str(agent_file)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [row["proven"] for row in told["documents"]] == [cloud_counts]
        assert told["effective"]["routing"]["cloud"] is False
        assert told["effective"]["routing"]["daily_bytes"] == (5000 if cloud_counts else 0)
        assert "disk" not in told["effective"]["alarms"]
        assert told["effective"]["alarms"]["temperature"] == {
            "raise_above": 70,
            "clear_below": 60,
        }
