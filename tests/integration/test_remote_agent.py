"""An agent and its fleet: what is signed is done, what is not is refused, and serving goes on."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from agent_cases import Agent, agent, start, wait_for_port
from click.testing import CliRunner
from cloud_cases import Cloud, answer
from fast_agent import SCRIPT, SharedClock
from mosquitto_broker import Broker
from mqtt_client import Client
from routing_pair import TOO_LONG
from serve_cases import build_example, point
from telemetry_cases import ORIN, Store, notice

from edgekit.batch_encoding import decompress
from edgekit.contracts.series import Values
from ota.cli.commands.config import command

TABLES = """
[routing]
enabled = true
base_url = "{cloud}"
model = "big"
state_file = "{folder}/budget.json"
daily_bytes = 1000000

[telemetry]
broker = "localhost"
port = {port}
ca = "{ca}"
certificate = "{certificate}"
key = "{key}"
tenant = "acme"
device = "orin-1"
ring = "{folder}/telemetry/ring.db"
sample_s = 10
batch_s = 20
daily_bytes = 100000000

[fleet]
url = "https://localhost:{service}"
cohorts = ["eu", "us"]
trusted_keys = "{folder}/trusted.json"
state_file = "{folder}/remote.json"
"""
STRICT = """
kind = "configuration"
tenant = "acme"
device = "orin-1"
counter = 5
valid_hours = 24
[settings.routing]
cloud = false
[settings.alarms.unified_memory]
raise_above = 0.0002
clear_below = 0.0001
[settings.telemetry]
sample_s = 5
[settings.log]
level = "info"
"""
FOR_A_COHORT = """
kind = "configuration"
tenant = "{tenant}"
cohort = "{cohort}"
counter = 9
valid_hours = 24
[settings.alarms]
unified_memory = false
"""
COMMAND = """
kind = "command"
tenant = "acme"
device = "orin-1"
command = "{name}"
id = "{name}-1"
counter = {counter}
valid_hours = 24
arguments = {arguments}
"""


def fleet(*arguments: object) -> str:
    """Run ``edgekit-fleet config``."""
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    if done.exception is not None:
        raise done.exception
    return done.output


@dataclass
class World:
    """A fleet's side: a broker, a folder of documents, a key and a stranger's.

    Attributes:
        folder: Of all files.
        broker: It runs.
        port: Where the service is to listen.
        clock: Of everything.
    """

    folder: Path
    broker: Broker
    port: int = 0
    clock: SharedClock = field(default_factory=SharedClock.now)
    _notices: int = 0

    def __post_init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        fleet("keygen", self.folder / "key.pem", "--trust", self.trusted)
        fleet("keygen", self.folder / "stranger.pem")

    @property
    def documents(self) -> Path:
        return self.folder / "published"

    @property
    def trusted(self) -> Path:
        return self.folder / "trusted.json"

    def tables(self, cloud: str) -> str:
        """Return what the agent is told."""
        identity = self.broker.device(ORIN)
        return TABLES.format(
            cloud=cloud,
            folder=self.folder,
            port=self.broker.device_port,
            ca=self.broker.server_ca,
            certificate=identity.certificate,
            key=identity.key,
            service=self.port,
        )

    @contextlib.contextmanager
    def service(self) -> Iterator[None]:
        """Run ``edgekit-fleet config serve``, with the broker's certificate."""
        files = self.broker.server_ca.parent
        code = "from ota.cli.commands.config import command; command()"
        options = [
            *("--documents", self.documents, "--port", self.port),
            *("--certificate", files / "server.pem", "--key", files / "server-key.pem"),
            *("--client-ca", self.broker.devices.certificate),
        ]
        line = [sys.executable, "-c", code, "serve", *map(str, options)]
        with subprocess.Popen(line) as process:
            try:
                wait_for_port(self.port)
                yield
            finally:
                process.terminate()

    def sign(self, text: str, key: str = "key.pem") -> Path:
        """Return the file of a signed document."""
        source = self.folder / "document.toml"
        source.write_text(text)
        signed = self.folder / "document.json"
        fleet("sign", source, "--key", self.folder / key, "--out", signed)
        return signed

    def publish(self, text: str) -> None:
        """Sign and publish a document."""
        paths = ("--documents", self.documents, "--trusted", self.trusted)
        fleet("publish", self.sign(text), *paths)

    def smuggle(self, place: str, text: str, key: str = "key.pem") -> None:
        """Put a document where the service finds it, as one who has broken into it would."""
        path = self.documents / "acme" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.sign(text, key).read_bytes())

    def notify(self, kind: str) -> None:
        """Have the broker tell the device that something waits."""
        self._notices += 1
        topic, payload = notice(self.clock, kind, f"n-{self._notices}", for_s=86_400.0)
        identity, ca = self.broker.services.issue("fleet"), self.broker.server_ca
        port = self.broker.service_port
        with Client(port, "fleet-1", identity=identity, server_ca=ca) as client:
            client.publish(topic, payload)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    point(tmp_path / "current", build_example(tmp_path / "bundle"))
    with Broker(tmp_path) as broker:
        yield World(tmp_path, broker)


def route(found: Agent) -> str:
    """Return where a prompt that is too long for the device goes."""
    address = f"http://127.0.0.1:{found.port}/v1/chat/completions"
    return str(httpx.post(address, json=TOO_LONG, timeout=30).headers["x-edgekit-route"])


def last(store: Store) -> Values:
    """Return the newest sample's values."""
    return store.samples[max(store.samples)].values if store.samples else {}


def outcomes(store: Store, *names: str) -> Callable[[], bool]:
    """Return whether a sample says that documents ended so."""
    return lambda: all(last(store).get(f"remote_documents_total.{name}") for name in names)


def unpacked(path: Path) -> dict[str, str]:
    """Return the files of a bundle."""
    with tarfile.open(fileobj=io.BytesIO(decompress(path.read_bytes(), "zstd"))) as tar:
        return {
            member.name: io.TextIOWrapper(found, "utf-8").read()
            for member in tar
            if (found := tar.extractfile(member)) is not None
        }


def takes_up_a_configuration(world: World, store: Store, found: Agent) -> None:
    """Publish one: it tightens, changes an alarm, and is told of."""
    assert route(found).startswith("cloud")
    assert not store.alarms
    world.publish(STRICT)
    world.notify("config")
    store.wait_until(outcomes(store, "applied"), "what became of the configuration")
    assert route(found) == "local; reason=forbidden"
    store.wait_for_alarms(1)
    (alarm,) = store.alarms.values()
    assert (alarm.alarm, alarm.threshold) == ("unified_memory", 0.0002)


def refuses_what_is_not_its_fleets(world: World, store: Store, found: Agent) -> None:
    """A stranger's, an old one and another tenant's come along with two signed commands."""
    loose = STRICT.replace("cloud = false", "cloud = true")
    world.smuggle("configuration/device/orin-1.json", loose.replace("= 5\nv", "= 4\nv"))
    stranger = FOR_A_COHORT.format(tenant="acme", cohort="eu")
    world.smuggle("configuration/cohort/eu.json", stranger, "stranger.pem")
    other = FOR_A_COHORT.format(tenant="umbrella", cohort="us")
    world.smuggle("configuration/cohort/us.json", other)
    assert not store.came["m/sample"]
    url = f"https://localhost:{world.port}/v1/diagnostics/logs-1"
    live, logs = "{ minutes = 1 }", f'{{ url = "{url}" }}'
    world.publish(COMMAND.format(name="live", counter=1, arguments=live))
    world.publish(COMMAND.format(name="logs", counter=2, arguments=logs))
    world.notify("live")
    store.wait_until(lambda: store.came["m/sample"] >= 2, "live samples")
    assert found.ask().status_code == 200
    store.wait_until(
        outcomes(store, "signature", "replayed", "tenant"), "what became of the others"
    )
    assert route(found) == "local; reason=forbidden"


def ends_live_mode(world: World, store: Store) -> None:
    """Its minute over, samples come in batches again."""
    until_s = world.clock.now_s() + 70
    while world.clock.now_s() < until_s:
        time.sleep(0.05)
    live, batches = store.came["m/sample"], store.came["m/batch"]
    store.wait_until(lambda: store.came["m/batch"] >= batches + 2, "batches")
    assert store.came["m/sample"] == live


def has_sent_a_redacted_bundle(world: World) -> None:
    """With the log's end, the readings and what holds; without addresses."""
    files = unpacked(world.documents / "acme/diagnostics/orin-1/logs-1.tar.zst")
    events = [json.loads(line) for line in files["log.jsonl"].splitlines()]
    assert "client-1" in {event.get("client") for event in events}
    assert any("refused" in event.get("message", "") for event in events)
    remote = json.loads(files["remote.json"])
    assert remote["effective"]["routing"]["cloud"] is False
    assert remote["documents"][0]["audience"] == "device:orin-1"
    assert json.loads(files["readings.json"])["requests_total"] > 0
    assert "127.0.0.1" not in "".join(files.values())


def details(store: Store) -> dict[str, Any]:
    """Return what the newest birth tells."""
    return dict(next(one for one in reversed(store.healths) if one.state == "up").details)


@pytest.mark.slow
def test_an_agent_does_what_its_fleet_signs(world: World) -> None:
    """Configuration, refusals, live mode, a bundle; started anew it holds what it held."""
    told = world.clock.environment
    with (
        Store(world.broker).open() as store,
        Cloud(answer).running() as cloud,
        agent(world.folder, world.tables(cloud), script=SCRIPT, told=told) as found,
    ):
        with world.service():
            found.wait("/readyz")
            store.wait_until(lambda: bool(store.healths), "the birth")
            world.notify("live")  # by itself it starts nothing
            takes_up_a_configuration(world, store, found)
            refuses_what_is_not_its_fleets(world, store, found)
            ends_live_mode(world, store)
            has_sent_a_redacted_bundle(world)
        found.process.kill()
        found.process.wait()
        births = len(store.healths)
        again = start(world.folder, script=SCRIPT, told=told)
        try:
            again.wait("/readyz")
            assert route(again) == "local; reason=forbidden"
            store.wait_until(lambda: len(store.healths) > births, "the second birth")
            assert details(store)["remote_held"].startswith("device:orin-1 ")
        finally:
            again.process.kill()
            again.process.wait()
