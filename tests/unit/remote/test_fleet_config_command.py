"""``edgekit-fleet config``: from a key to a document that a device takes up, and back to words."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mqtt_certificates import Authority
from remote_cases import FakeClock

from device.remote.config import parse_fleet
from device.remote.effective import Local
from device.remote.exchange import Exchange
from device.remote.gate import Gate
from device.remote.remote import Remote
from device.remote.state import StateFile
from edgekit.contracts.topics import Device
from edgekit.errors import EdgekitError
from edgekit.signing import TrustedKeys
from ota.cli.commands.config import command

CONFIGURATION = """
kind = "configuration"
tenant = "acme"
cohort = "eu"
valid_hours = 720

[settings.routing]
cloud = false

[settings.alarms.temperature]
raise_above = 95
"""
COMMAND = """
kind = "command"
tenant = "acme"
device = "orin-1"
counter = 3
valid_hours = 0.5
command = "live"
arguments = { minutes = 5 }
"""


def run(*arguments: object) -> str:
    """Run a command that ends well; return what it prints."""
    result: Result = CliRunner().invoke(command, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def said(*arguments: object) -> str:
    """Run a command that fails with an error of ours; return its line."""
    with pytest.raises(EdgekitError) as caught:
        run(*arguments)
    return str(caught.value)


def test_from_keys_to_a_device(tmp_path: Path) -> None:
    """Two keys, two signatures made apart, published, taken up by a device with the same file."""
    one, two, trust = tmp_path / "one.pem", tmp_path / "two.pem", tmp_path / "trusted.json"
    store, source, out = tmp_path / "store", tmp_path / "eu.toml", tmp_path / "eu.json"
    first = run("keygen", one, "--trust", trust).strip()
    second = run("keygen", two, "--trust", trust, "--threshold", 2).strip()
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    source.write_text(CONFIGURATION)
    assert "no counter" in said("sign", source, "--key", one, "--out", out)
    run("sign", source, "--key", one, "--out", out, "--documents", store)
    assert "2 must" in said("publish", out, "--documents", store, "--trusted", trust)
    run("sign", out, "--key", two, "--out", out)
    assert "1 is published" in run("publish", out, "--documents", store, "--trusted", trust)
    old = out.rename(tmp_path / "old.json")
    run("sign", source, "--key", one, "--key", two, "--out", out, "--documents", store)
    assert "2 is published" in run("publish", out, "--documents", store, "--trusted", trust)
    assert "already" in said("publish", old, "--documents", store, "--trusted", trust)
    told = json.loads(run("show", out, "--trusted", trust))
    assert sorted(told["verified"]) == sorted([first, second])
    assert told["document"]["counter"] == 2
    published = json.dumps({"documents": [json.loads(out.read_bytes())]}).encode()
    gate = Gate(Device("acme", "orin-1"), ["eu"], TrustedKeys.load(trust))
    clock, file = FakeClock(time.time_ns() // 1_000_000), StateFile(tmp_path / "state")
    remote = Remote(gate, file, Local(), clock, lambda _: None)
    remote.take(published)
    assert remote.effective.rules["temperature"].raise_above == 95
    assert remote.readings()["remote_documents_total.applied"] == 1


def test_a_command_is_signed_and_shown(tmp_path: Path) -> None:
    """An id is made up where none is written; the times are from now on."""
    key, source, out = tmp_path / "key.pem", tmp_path / "live.toml", tmp_path / "live.json"
    run("keygen", key)
    source.write_text(COMMAND)
    run("sign", source, "--key", key, "--out", out)
    told = json.loads(run("show", out))["document"]
    assert told["arguments"] == {"minutes": 5}
    assert told["id"].startswith("c-")
    assert told["expires_ms"] - told["issued_ms"] == 1_800_000


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("kind = ", "not valid TOML"),
        ("kind = 'x'", "kind 'x' is not one of configuration, command"),
        ("kind = []", "is not one of"),
        (CONFIGURATION.replace("cohort", "fleet"), "no key 'fleet'"),
        (CONFIGURATION.replace("cohort = 'eu'", ""), "no counter"),
        (CONFIGURATION.replace('cohort = "eu"', ""), "exactly one of device and cohort"),
        (CONFIGURATION.replace("720", "true"), "of the wrong type"),
        (CONFIGURATION.replace("720", "0"), "valid_hours is not above 0"),
        (CONFIGURATION.replace("720", "inf"), "valid_hours is not above 0"),
        (CONFIGURATION.replace('"acme"', '"../acme"'), "letter or digit"),
        (COMMAND.replace("counter = 3", "counter = 0"), "counter is below 1"),
        (COMMAND.replace('device = "orin-1"', ""), "lacks device"),
        (COMMAND.replace("minutes = 5", "minutes = 500"), "minutes must be 1 to 60"),
        (COMMAND.replace("minutes = 5", "minutes = 1979-05-27"), "not a JSON type"),
        (f"counter = 1\n{CONFIGURATION.replace('false', '1')}", "must be true or false"),
        ('{"payload": ""}', "lacks 'payloadType'"),
    ],
)
def test_a_document_that_means_nothing_is_not_signed(tmp_path: Path, text: str, wrong: str) -> None:
    """Who signs is told what no device would take up, with the place."""
    key, source = tmp_path / "key.pem", tmp_path / "x.toml"
    run("keygen", key)
    source.write_text(text)
    assert wrong in said("sign", source, "--key", key, "--out", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A missing document, key or file of keys ends in one line."""
    none = tmp_path / "none"
    assert "cannot read" in said("sign", none, "--key", none, "--out", none)
    assert "cannot read" in said("show", none)
    run("keygen", tmp_path / "key.pem")
    assert "never overwritten" in said("keygen", tmp_path / "key.pem")


def test_the_service_runs_from_the_command_line(tmp_path: Path) -> None:
    """``serve`` in a process of its own answers a device over mutual TLS, and ends on SIGTERM."""
    import asyncio
    import socket

    authority = Authority(tmp_path, "devices")
    server, device = authority.issue("localhost", server=True), authority.issue("acme/device/o")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    files = ["--certificate", server.certificate, "--key", server.key]
    files += ["--client-ca", authority.certificate, "--crl", authority.crl]
    code = "from ota.cli.commands.config import command; command()"
    started = [sys.executable, "-c", code, "serve", "--documents", tmp_path / "store", "--port"]
    table = {
        "url": f"https://127.0.0.1:{port}",
        "tenant": "acme",
        "device": "o",
        "certificate": str(device.certificate),
        "key": str(device.key),
        "ca_file": str(authority.certificate),
    }
    with subprocess.Popen([str(one) for one in (*started, port, *files)]) as process:
        try:
            ends = time.monotonic() + 15
            while True:
                try:
                    found = asyncio.run(Exchange(parse_fleet(table)).pending())
                    break
                except EdgekitError:
                    assert time.monotonic() < ends
                    time.sleep(0.1)
        finally:
            process.terminate()
    assert found is not None
    assert json.loads(found.body) == {"documents": []}
    assert process.returncode in {0, -15}
