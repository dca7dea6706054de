"""systemd hears how the agent is; its unit is one that systemd takes."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from device.agent.systemd import Notifier
from edgekit.errors import StorageError

UNIT = Path(__file__).parents[3] / "device" / "systemd" / "edgekit-agent.service"


def unit() -> configparser.ConfigParser:
    """Return the unit; keys that stand twice are joined by a line feed."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their case
    parser.read(UNIT)
    return parser


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_states_are_datagrams(tmp_path: Path, kind: str) -> None:
    """To a path or to the abstract namespace; a status that does not change is said once."""
    address = str(tmp_path / "notify") if kind == "path" else f"@edgekit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
        assert notifier.watchdog_s == 30
        notifier.ready()
        notifier.status("serving r1")
        notifier.status("serving r1")
        notifier.watchdog()
        notifier.reloading()
        notifier.stopping()
        got = [receiver.recv(1000).decode() for _ in range(5)]
    assert got[:3] == ["READY=1", "STATUS=serving r1", "WATCHDOG=1"]
    assert got[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert int(got[3].rpartition("=")[2]) > 0
    assert got[4] == "STOPPING=1"


def test_without_systemd_nothing_is_said(tmp_path: Path) -> None:
    """No socket is none of an error; one that is not there is, and a watchdog is one process'."""
    quiet = Notifier({})
    quiet.ready()
    assert quiet.watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier({"WATCHDOG_USEC": "0"}).watchdog_s is None
    with pytest.raises(StorageError, match="cannot tell systemd"):
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready()


def test_the_unit_says_what_the_agent_does() -> None:
    """Told by notification, watched, started again, with one folder to write to."""
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"] == "/opt/edgekit/bin/python -m device"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["Restart"], service["WatchdogSec"]) == ("always", "30")
    assert service["StateDirectory"] == "edgekit"
    assert (service["ProtectSystem"], service["NoNewPrivileges"]) == ("strict", "yes")
    assert service["User"] == "edgekit"
    # Longer than requests have to end, which is 30 s unless the configuration says otherwise.
    assert int(service["TimeoutStopSec"]) > 30
    assert unit()["Install"]["WantedBy"] == "multi-user.target"


ANALYZE = shutil.which("systemd-analyze") or ""


@pytest.mark.skipif(not ANALYZE, reason="needs systemd's package")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, once there is a program to start."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/edgekit/bin/python", "/bin/true"))
    result = subprocess.run(
        [ANALYZE, "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    said = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert (result.returncode, said) == (0, []), result.stderr
