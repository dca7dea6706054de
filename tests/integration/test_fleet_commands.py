"""``edgekit-fleet``: what an operator sees of the store, and how wrong uses are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fleet_cases import BOOT, DEVICE, START_MS, alarm, arrived, batch_payload, health

from edgekit.contracts.telemetry import Sample
from edgekit.contracts.topics import Device
from edgekit.errors import MissingExtraError
from ota.cli import main as fleet
from ota.cli.entry import main
from ota.ingest.messages import read_message
from ota.store.commit import Writer
from ota.store.database import connect
from ota.store.items import NewBatch, NewHealth, NewItem, Reject
from ota.store.schema import migrate


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store with a device that is up, has an alarm, and sent twelve samples."""
    url = f"sqlite:///{tmp_path}/store.db"
    messages = [
        arrived("status/health", health().to_bytes()),
        arrived("m/batch", batch_payload(range(1, 13))),
        arrived("a/temperature", alarm(13).to_bytes(), encoding="json"),
        arrived("m/batch", batch_payload([1]), Device("beta", "orin-1")),
        arrived("m/batch", batch_payload([1]), Device("beta", "orin-7")),
    ]
    items: list[NewItem] = []
    for message in messages:
        read = read_message(message)
        assert not isinstance(read, Reject)
        items.append(read)
    with closing(connect(url)) as opened:
        migrate(opened)
        Writer(opened).commit(items)
    return url


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(str(ended.value.code)), printed.out, printed.err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    code, out, _ = run(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_devices_are_listed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With tenant, state, when they were last seen, and how many alarms are raised."""
    found = run_json(capsys, "devices", "list", "--store", store)["devices"]
    assert [(d["tenant"], d["device"], d["state"], d["active_alarms"]) for d in found] == [
        ("acme", "orin-1", "up", 1),
        ("beta", "orin-1", None, 0),
        ("beta", "orin-7", None, 0),
    ]
    assert found[0]["last_seen_ms"] == START_MS
    _, out, _ = run(capsys, "devices", "list", "--store", store, "--tenant", "acme")
    assert "acme/orin-1" in out
    assert "beta" not in out


def test_why_a_device_is_down_is_told(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped on purpose is another thing than lost; details that are times are read as such."""
    details = {"certificate_not_after_ms": START_MS, "odd_ms": 10**15}
    birth = arrived("status/health", health(connection=2, details=details).to_bytes())
    ends = {"reason": "stopped"}
    goodbye = arrived("status/health", health("down", 2, details=ends).to_bytes())
    with closing(connect(store)) as opened:
        for message in (birth, goodbye):
            item = read_message(message)
            assert isinstance(item, NewHealth)
            Writer(opened).commit([item])
    [found] = run_json(capsys, "devices", "list", "--store", store, "--tenant", "acme")["devices"]
    assert (found["state"], found["down_reason"]) == ("down", "stopped")
    _, out, _ = run(capsys, "devices", "list", "--store", store)
    assert "down (stopped)" in out
    _, out, _ = run(capsys, "devices", "show", "acme/orin-1", "--store", store)
    assert "down (stopped), since" in out
    assert "2026-07-25 09:08:28" in out
    assert "1000000000000000" in out


def test_a_device_is_shown(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By name, or by tenant and name where several tenants have it."""
    found = run_json(capsys, "devices", "show", "acme/orin-1", "--store", store)
    assert (found["boot"], found["encodings"][0]) == (BOOT, "zstd-ek1")
    assert [one["alarm"] for one in found["active_alarms"]] == ["temperature"]
    code, out, _ = run(capsys, "devices", "show", "acme/orin-1", "--store", store)
    assert code == 0
    assert "temperature temperature_celsius.cpu 91.5 > 90" in out
    assert run(capsys, "devices", "show", "orin-7", "--store", store)[0] == 0
    code, _, said = run(capsys, "devices", "show", "orin-1", "--store", store)
    assert code == 17
    assert "'orin-1' may be acme/orin-1, beta/orin-1. Name the tenant" in said
    code, _, said = run(capsys, "devices", "show", "nobody", "--store", store)
    assert code == 17
    assert "no device 'nobody'" in said


def test_samples_are_decoded(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest by time, with the readings asked for."""
    asked = ("samples", "show", DEVICE.device, "--last", "3", "--reading", "gpu_mhz")
    code, _, said = run(capsys, *asked, "--store", store)
    assert code == 17
    assert "Name the tenant" in said
    asked = (*asked[:2], "acme/orin-1", *asked[3:])
    found = run_json(capsys, *asked, "--store", store)["samples"]
    assert [(one["seq"], one["values"]) for one in found] == [
        (10, {"gpu_mhz": 10}),
        (11, {"gpu_mhz": 11}),
        (12, {"gpu_mhz": 12}),
    ]
    code, out, _ = run(capsys, *asked, "--store", store)
    assert code == 0
    assert out.count("gpu_mhz") == 3


def test_times_that_no_calendar_has_are_shown(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device's clock may say anything; its samples are there all the same."""
    odd = Sample(boot=BOOT, seq=99, time_ms=2**53 - 2, clock="unsynced", values={"gpu_mhz": 7})
    item = read_message(arrived("m/sample", odd.to_bytes()))
    assert isinstance(item, NewBatch)
    with closing(connect(store)) as opened:
        Writer(opened).commit([item])
    code, out, _ = run(capsys, "samples", "show", "acme/orin-1", "--last", "1", "--store", store)
    assert code == 0
    assert f"{2**53 - 2} ms" in out


def test_a_reading_that_is_not_there_is_told(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt name is no empty table."""
    asked = ("samples", "show", "acme/orin-1", "--reading", "gpu_mhz", "--reading", "gpu_mzh")
    code, _, said = run(capsys, *asked, "--store", store)
    assert code == 17
    assert "has a reading 'gpu_mzh'" in said


def test_the_store_is_looked_after(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status, backup, prune, restore: the restored store has what was pruned."""
    assert run_json(capsys, "store", "migrate", "--store", store)["version_before"] is not None
    before = run_json(capsys, "store", "status", "--store", store)
    assert (before["devices"], before["samples"], before["active_alarms"]) == (3, 14, 1)
    saved = str(tmp_path / "saved")
    assert run(capsys, "store", "backup", saved, "--store", store)[0] == 0
    pruned = run_json(capsys, "store", "prune", "--batches-days", "0", "--store", store)
    assert pruned["deleted"]["batches"] == 3
    assert run_json(capsys, "store", "status", "--store", store)["samples"] == 0
    code, _, said = run(capsys, "store", "restore", saved, "--store", store)
    assert code == 17
    assert "--replace" in said
    assert run(capsys, "store", "restore", saved, "--replace", "--store", store)[0] == 0
    after = run_json(capsys, "store", "status", "--store", store)
    assert (after["samples"], after["batches"]) == (14, 3)
    code, out, _ = run(capsys, "store", "status", "--store", store)
    assert code == 0
    assert "samples" in out


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--broker", "http://x"], 15, "'http://x' is no broker's URL. Write mqtts://"),
        (["--broker", "mqtt://x:99999"], 15, "cannot be read"),
        (["--broker", "mqtt://x", "--receive-maximum", "0"], 15, "must be 1 to 65535"),
        (["--broker", "mqtt://x", "--group-messages", "5001"], 15, "must be 1 to 5000"),
        (["--broker", "mqtt://x", "--tenant", "a b"], 16, "tenant 'a b' is not"),
        (["--broker", "mqtts://x", "--ca", "/none"], 15, "TLS with the broker cannot be set up"),
        (["--broker", "mqtts://x", "--key", "/none"], 15, "go together"),
        (["--broker", "mqtt://x", "--ca", "/none"], 15, "has no TLS. Write mqtts://"),
        (["--broker", "mqtt://me:hush@x"], 15, "URL names a user. Workers are known by"),
        (["--broker", "mqtt://x?keepalive=1"], 15, "is no broker's URL"),
        (["--broker", "mqtt://x:0"], 15, "is no broker's URL"),
        (["--broker", "mqtt://x", "--name", ""], 15, "cannot be called ''. Give it a --name"),
        (["--broker", "mqtt://x", "--group", "a/b"], 15, "group cannot be called 'a/b'. Take"),
        (["--broker", "mqtt://x", "--session-s", "-1"], 15, "session_s must be 0 to"),
        ([], 2, "--broker"),
    ],
)
def test_wrong_settings_of_a_worker_are_told(
    store: str,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    """Before it connects to anything."""
    found, _, printed = run(capsys, "ingest", "--store", store, *options)
    assert found == code
    assert said in printed


def test_a_worker_without_a_broker_ends_when_asked(store: str, tmp_path: Path) -> None:
    """It tries again and again, says so, and still obeys SIGTERM."""
    command = [sys.executable, "-m", "ota.cli", "ingest", "--store", store]
    log = tmp_path / "log"
    with log.open("wb") as file:
        worker = subprocess.Popen([*command, "--broker", "mqtt://127.0.0.1:1"], stderr=file)
    try:
        deadline = time.monotonic() + 30
        while log.read_text().count("the broker cannot be reached") < 2:
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    finally:
        worker.kill()
        worker.wait()


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help comes without the cloud's packages; a command says what to install."""
    monkeypatch.setattr(fleet, "NEEDED", ("a_package_that_nobody_has",))
    assert run(capsys, "--help")[0] == 0
    code, _, said = run(capsys, "devices", "list")
    assert code == MissingExtraError.exit_code
    assert "pip install 'edgekit[fleet]'" in said


@pytest.mark.parametrize("command", ["", *fleet.COMMANDS])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the program and what the command does."""
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert f"edgekit-fleet {command}".strip() in out
