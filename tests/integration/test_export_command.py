"""``edgekit-fleet export prometheus``: a real store, a real Prometheus, a process that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from child_process import free_port
from click.testing import CliRunner
from fleet_cases import alarm, arrived, batch_payload, health
from prometheus_server import Prometheus
from serve_cases import wait_until

from edgekit.batch_encoding import compress
from edgekit.contracts.telemetry import Batch, Sample
from edgekit.contracts.topics import Device
from edgekit.errors import ConfigError, ExportError
from ota.cli.main import cli
from ota.ingest.messages import read_message
from ota.store.commit import Writer
from ota.store.database import connect
from ota.store.items import NewBatch, NewItem
from ota.store.schema import migrate, open_store

ROOT = Path(__file__).parents[2]
ORIN = Device("acme", "orin-1")


def fresh_batch(first: int) -> bytes:
    """Return a batch of the last ten minutes."""
    now_ms = time.time_ns() // 1_000_000
    samples = [
        Sample(
            boot="1f0a52c3d4e5b6a7-3f9c01d2",
            seq=first + n,
            time_ms=now_ms - 10_000 * (59 - n),
            clock="synced",
            values={"uptime_s": 10 * (first + n), "temperature_celsius.cpu": 50.5},
        )
        for n in range(60)
    ]
    return compress(Batch.of_samples(samples).to_bytes(), "zstd-ek1")


def commit(url: str, *messages: tuple[str, bytes]) -> None:
    """Store messages as ingest does."""
    items: list[NewItem] = []
    for kind, payload in messages:
        item = read_message(arrived(kind, payload, ORIN))
        assert isinstance(item, NewItem)
        items.append(item)
    with closing(open_store(url)) as store:
        Writer(store).commit(items)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/store.db"
    with closing(connect(url)) as store:
        migrate(store)
    return url


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with Prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        yield server


def arguments(url: str, to: str, folder: Path, *more: str) -> list[str]:
    state = f"--state={folder}/cursor.json"
    return ["export", "prometheus", f"--store={url}", f"--url={to}", state, *more]


def test_a_process_exports_tells_and_ends(url: str, prometheus: Prometheus, tmp_path: Path) -> None:
    """Batches arrive while it runs, /metrics tell of the fleet, and SIGTERM ends it with 0."""
    commit(url, ("m/batch", fresh_batch(1)), ("status/health", health().to_bytes()))
    port = free_port()
    command = [sys.executable, "-m", "ota.cli"]
    options = arguments(url, prometheus.url, tmp_path, f"--metrics-port={port}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stderr=log, env=environment, cwd=ROOT)
    uptime = 'count_over_time(edgekit_device_uptime_seconds{device="orin-1"}[1h])'
    try:
        wait_until(lambda: prometheus.value(uptime) == 60, 30, (tmp_path / "log").read_text())
        commit(url, ("m/batch", fresh_batch(61)), ("a/temperature", alarm(200).to_bytes()))
        wait_until(lambda: prometheus.value(uptime) == 120, 30)
        time.sleep(5.1)  # the fleet is asked for at most once in five seconds
        told = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
    assert code == 0, (tmp_path / "log").read_text()
    labels = 'alarm="temperature",device="orin-1",reading="temperature_celsius.cpu"'
    assert f'edgekit_fleet_alarm_active{{{labels},severity="major",tenant="acme"}} 1.0' in told
    assert 'edgekit_fleet_device_up{device="orin-1",tenant="acme"} 1.0' in told
    assert "edgekit_fleet_export_points_total 240.0" in told
    assert "edgekit_fleet_export_lag_seconds 0.0" in told
    assert "read_total" not in (tmp_path / "log").read_text()


def test_from_now_leaves_out_what_is_stored(
    url: str, prometheus: Prometheus, tmp_path: Path
) -> None:
    """With --from-now the first run sends nothing old; the next goes on from there."""
    commit(url, ("m/batch", batch_payload(range(1, 4))))
    runner = CliRunner()
    options = arguments(url, prometheus.url, tmp_path, "--from-now", "--once")
    assert runner.invoke(cli, options, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "cursor.json").read_text() == '{"cursor": 1}'


@pytest.mark.parametrize(("option", "words"), [
    ("--series=uptime_s,nonsense", "no series nonsense"),
    ("--series=,", "no series in it"),
    ("--window-h=nan", "window-h is nan, and must be 0.5 to"),
    ("--window-h=inf", "window-h is inf, and must be 0.5 to"),
    ("--token-file=/nowhere/token", "cannot read /nowhere/token"),
    ("--metrics-address=256.0.0.1", "metrics cannot be served"),
])  # fmt: skip
def test_wrong_settings_are_named(
    url: str, prometheus: Prometheus, tmp_path: Path, option: str, words: str
) -> None:
    """What is wrong with an option is said, with what to do."""
    options = arguments(url, prometheus.url, tmp_path, "--once", "--metrics-port=0", option)
    with pytest.raises(ConfigError, match=words) as caught:
        CliRunner().invoke(cli, options, catch_exceptions=False)
    assert caught.value.remedy


def test_a_wrong_address_is_an_error_and_moves_nothing(
    url: str, prometheus: Prometheus, tmp_path: Path
) -> None:
    """A receiver that answers 404 ends the process; nothing counts as delivered."""
    commit(url, ("m/batch", fresh_batch(1)))
    options = arguments(url, f"{prometheus.url}/nowhere", tmp_path, "--once")
    with pytest.raises(ExportError):
        CliRunner().invoke(cli, options, catch_exceptions=False)
    assert not (tmp_path / "cursor.json").exists()
    assert isinstance(read_message(arrived("m/batch", fresh_batch(1), ORIN)), NewBatch)
