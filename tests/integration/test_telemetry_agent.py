"""The agent with a table ``[telemetry]``: it reports, and serves whatever becomes of the broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_cases import agent
from mosquitto_broker import Broker
from serve_cases import build_example, point
from telemetry_cases import ORIN, Store

TABLE = """
[telemetry]
broker = "localhost"
port = {port}
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
tenant = "acme"
device = "orin-1"
ring = "{folder}/telemetry/ring.db"
sample_s = 5
batch_s = 10
daily_bytes = 100000000
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def table(broker: Broker, folder: Path) -> str:
    identity = broker.device(ORIN)
    return TABLE.format(
        port=broker.device_port,
        ca=broker.server_ca,
        certificate=identity.certificate,
        key=identity.key,
        folder=folder,
    )


@pytest.mark.slow
def test_an_agent_reports_what_it_serves(broker: Broker, tmp_path: Path) -> None:
    """Birth with the model's name, samples with the server's counters, a goodbye at SIGTERM."""
    point(tmp_path / "current", build_example(tmp_path / "bundle"))
    with Store(broker).open() as store, agent(tmp_path, table(broker, tmp_path)) as found:
        found.wait("/readyz")
        assert found.ask().status_code == 200

        def counted() -> bool:
            values = [sample.values for sample in store.samples.values()]
            return any(value.get("requests_total") == 1 for value in values)

        store.wait_until(counted, "a sample with the request", 40)
        found.process.terminate()
        assert found.process.wait(20) == 0
        store.wait_until(lambda: store.healths[-1].state == "down", "the goodbye")
    values = store.samples[max(store.samples)].values
    assert (values["generated_tokens_total"] or 0) > 0
    assert 0 < (values["engine_memory_used_ratio"] or 0) < 1
    assert store.healths[0].details["state"] in {"no model", "loading", "serving"}
    assert store.healths[-1].details["reason"] == "stopped"


def test_serving_waits_for_no_telemetry(broker: Broker, tmp_path: Path) -> None:
    """No broker, a certificate that is none, a ring that is a folder: requests are answered."""
    point(tmp_path / "current", build_example(tmp_path / "bundle"))
    (tmp_path / "telemetry/ring.db").mkdir(parents=True)
    told = table(broker, tmp_path)
    broker.devices.certificate.write_text("none")
    broker.kill()
    with agent(tmp_path, told) as found:
        found.wait("/readyz")
        for _ in range(3):
            assert found.ask().status_code == 200
        found.process.terminate()
        assert found.process.wait(20) == 0
