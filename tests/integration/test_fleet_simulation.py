"""A fleet of simulated devices, the broker and the workers, all of them killed: nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fleet_workers import WorkerProcess
from mosquitto_broker import Broker
from serve_cases import wait_until
from simulated_fleet import SimulatorProcess, take_accounts

from ota.store.database import Store, connect
from ota.store.schema import migrate

PACE = ("--speed", "20", "--batch-s", "20", "--spread-s", "10", "--spells-s", "300")
DRAIN_S = 60.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(connect(url)) as opened:
        migrate(opened)
        yield opened


@pytest.fixture
def worker(broker: Broker, url: str, store: Store, tmp_path: Path) -> Iterator[WorkerProcess]:
    del store  # it has made the tables
    address = f"mqtt://127.0.0.1:{broker.plain_port}"
    with WorkerProcess(tmp_path, url, address) as running:
        yield running


def test_nothing_is_lost_or_doubled(
    broker: Broker, worker: WorkerProcess, store: Store, tmp_path: Path
) -> None:
    """Broker, worker and devices are killed in turn, networks fail: every row arrives once."""
    options = (*PACE, "--outages", "0.1", "--outage-s", "30")
    with SimulatorProcess(broker, tmp_path, devices=20, options=options) as devices:
        for _ in range(3):
            time.sleep(2)
            broker.restart(crash=True)
            time.sleep(1)
            worker.kill()
            worker.start()
            time.sleep(1)
            devices.kill()
            devices.start()
        time.sleep(2)
        report = devices.report()
        assert report["samples"] > 20
        assert report["connects"] >= 20
        devices.start("--drain")
        assert devices.wait(DRAIN_S)["left"] == 0
    accounts = take_accounts(tmp_path, store)
    accounts.check()
    assert accounts.dropped == 0
    assert len(accounts.promised) > 400
    assert len({device for device, _, _ in accounts.stored}) == 20
    assert len({boot for _, boot, _ in accounts.stored}) == 20


def test_the_accounts_see_a_lost_row_a_double_and_a_change(
    worker: WorkerProcess, broker: Broker, store: Store, tmp_path: Path
) -> None:
    """A row that is lost, stored twice or with other readings does not pass."""
    del worker
    with SimulatorProcess(broker, tmp_path, devices=1, options=PACE) as devices:
        time.sleep(3)
        devices.report()
        devices.start("--drain")
        devices.wait(DRAIN_S)
    accounts = take_accounts(tmp_path, store)
    accounts.check()
    key = min(accounts.promised)
    accounts.stored[key] += 1
    with pytest.raises(AssertionError, match="1 rows are stored twice"):
        accounts.check()
    del accounts.stored[key]
    with pytest.raises(AssertionError, match="1 lost"):
        accounts.check()
    accounts.stored[key] = 1
    log = tmp_path / "promises-0.log"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([f"{first.rsplit(' ', 1)[0]} 7", *others]))
    with pytest.raises(AssertionError, match="1 rows are others"):
        take_accounts(tmp_path, store).check()


def test_the_command_runs_processes_and_sums_their_reports(
    broker: Broker, worker: WorkerProcess, tmp_path: Path
) -> None:
    """``edgekit-fleet simulate`` spreads devices over processes and ends them on SIGTERM."""
    del worker
    command = [
        *(sys.executable, "-m", "ota.cli", "simulate", "--devices", "5", "--processes", "2"),
        *("--broker", f"localhost:{broker.device_port}", "--ca", str(broker.server_ca)),
        *("--certificates", str(tmp_path / "certificates"), "--rings", str(tmp_path / "rings")),
        *("--make-certificates", str(broker.devices.bundle()), *PACE, "--herd"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        connected = "New client connected"
        wait_until(lambda: broker.log.read_text().count(connected) == 6, 20.0)  # the worker's, too
        time.sleep(2)  # a device counts it when its turn comes
        running.send_signal(signal.SIGTERM)
        said, failed = running.communicate(timeout=30)
    assert running.returncode == 0, failed
    report = json.loads(said)
    assert (report["processes"], report["devices"], report["connects"]) == (2, 5, 5)
    assert report["samples"] >= 5
    assert report["samples"] + report.get("alarms", 0) == report["left"] + report.get(
        "acknowledged", 0
    )
    assert sorted(path.name for path in (tmp_path / "rings").glob("*.db")) == [
        f"d0000{number}.db" for number in range(5)
    ]


def test_processes_end_with_the_command_that_started_them(broker: Broker, tmp_path: Path) -> None:
    """After ``kill -9`` of the command no simulated device is left behind."""
    command = [
        *(sys.executable, "-m", "ota.cli", "simulate", "--devices", "2", "--processes", "2"),
        *("--broker", f"localhost:{broker.device_port}", "--ca", str(broker.server_ca)),
        *("--certificates", str(tmp_path / "certificates"), "--rings", str(tmp_path / "rings")),
        *("--make-certificates", str(broker.devices.bundle()), *PACE, "--herd"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        wait_until(lambda: broker.log.read_text().count("New client connected") == 2, 20.0)
        running.kill()
        # The pipe is the command's and its children's: it ends with the last of them.
    wait_until(lambda: broker.log.read_text().count("disconnected") == 2, 20.0)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--broker", "nowhere"], 15, "'nowhere' is no broker"),
        (["--devices", "1001"], 15, "1001 devices in one process"),
        (["--speed", "0"], 15, "speed is 0"),
        (["--outages", "1"], 15, "the outages' share is 1"),
        (["--make-certificates", "/nowhere/ca.pem"], 15, "/nowhere/ca.pem is no authority"),
        (["--encoding", "gzip"], 15, "encoding 'gzip' is none of"),
    ],
)
def test_what_means_nothing_is_refused(
    options: list[str], code: int, said: str, tmp_path: Path
) -> None:
    """A wrong option ends with one line that names it."""
    folder = str(tmp_path)
    command = [
        *(sys.executable, "-m", "device.simulator", "--broker", "localhost:1", "--ca", folder),
        *("--certificates", folder, "--rings", folder, *options),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_devices_do_not_change_their_speed(tmp_path: Path) -> None:
    """Rings that ran at one speed are refused at another, for their clocks would go back."""
    folder = str(tmp_path)
    command = [
        *(sys.executable, "-m", "device.simulator", "--broker", "localhost:1", "--ca", folder),
        *("--certificates", folder, "--rings", folder, "--duration-s", "0.1", "--speed"),
    ]
    assert subprocess.run([*command, "5"], timeout=30, check=False).returncode == 0
    other = subprocess.run([*command, "6"], capture_output=True, text=True, timeout=30, check=False)
    assert other.returncode == 15
    assert "ran at speed 5, not 6" in other.stderr
