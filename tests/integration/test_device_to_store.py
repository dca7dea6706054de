"""The whole way: a device's ring and publisher, a real broker, workers, a real store."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from fleet_workers import WorkerProcess
from mosquitto_broker import Broker
from serve_cases import wait_until
from telemetry_cases import ORIN, FastClock, configuration, telemetry

from device.telemetry.clock import boot_id
from device.telemetry.ring import Ring
from ota.store.database import Store, connect
from ota.store.read import alarms_of, batches_after, find_device
from ota.store.schema import migrate, open_store

WAIT_S = 60.0


def numbers(store: Store) -> Counter[int]:
    """Return how often each number of the device's boot is stored, of samples and alarms."""
    found = Counter(one.seq for one in alarms_of(store, ORIN.tenant, ORIN.device, 10_000))
    for stored in batches_after(store, 0, 10_000):
        found.update(sample.seq for sample in stored.batch().samples())
    return found


def is_whole(store: Store, at_least: int) -> bool:
    """Whether numbers 1 to some are stored without a gap, and enough of them."""
    found = numbers(store)
    return len(found) >= at_least and set(found) == set(range(1, len(found) + 1))


def wait_until_whole(store: Store, at_least: int, what: str) -> None:
    """Wait for what happens in other processes."""
    wait_until(lambda: is_whole(store, at_least), WAIT_S, what, every_s=0.1)


@pytest.mark.slow
def test_what_a_device_measures_is_stored_once(tmp_path: Path, store_url: str) -> None:
    """Worker and broker are killed meanwhile; each number is stored once and leaves the ring."""
    clock = FastClock(40.0)
    with closing(connect(store_url)) as plain:
        migrate(plain)
    with Broker(tmp_path) as broker, closing(open_store(store_url)) as store:
        identity = broker.services.issue("ingest")
        options = [
            *("--ca", str(broker.server_ca), "--certificate", str(identity.certificate)),
            *("--key", str(identity.key)),
        ]
        address = f"mqtts://localhost:{broker.service_port}"
        with (
            WorkerProcess(tmp_path, store_url, address, options=options) as worker,
            telemetry(configuration(broker, tmp_path), clock),
        ):
            wait_until_whole(store, 8, "no first samples")
            worker.kill()
            time.sleep(0.5)
            worker.start()
            wait_until_whole(store, 16, "no samples after the worker's death")
            broker.restart(crash=True)
            wait_until_whole(store, 32, "no samples after the broker's death")
            worker_code = worker.stop()
        found = numbers(store)
        device = find_device(store, ORIN.tenant, ORIN.device)
    assert worker_code == 0
    assert set(found.values()) == {1}
    assert device is not None
    assert device.encodings == ("zstd-ek1", "zstd", "json")
    ring = Ring(tmp_path / "telemetry/ring.db", boot_id(), clock)
    left = {row.seq for row in ring.take(1000)}
    ring.close()
    assert len(left) < 16
    assert not left & set(range(1, 9))
