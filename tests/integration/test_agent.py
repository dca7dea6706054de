"""`python -m device` as a process: idle, watched, killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_cases import HANGING, Agent, agent, start, wait_for_event
from serve_cases import NAME, point, renamed


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_a_model_it_costs_next_to_nothing(tmp_path: Path) -> None:
    """Under 80 MB and under 0.5 % of a core, and it says what it lacks."""
    with agent(tmp_path, poll_s=2.0) as found:
        found.wait("/healthz")
        time.sleep(1)
        before, began = cpu_s(found.process.pid), time.monotonic()
        time.sleep(8)
        share = (cpu_s(found.process.pid) - before) / (time.monotonic() - began)
        status = Path(f"/proc/{found.process.pid}/status").read_text()
        resident_mb = int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6
        print(f"idle: {resident_mb:.1f} MB, {share:.2%} of a core")  # noqa: T201
        assert resident_mb < 60
        assert share < 0.005
        ready = found.get("/readyz")
        assert (ready.status_code, ready.json()["state"]) == (503, "no model")
        assert found.get("/v1/models").json()["data"] == []
        refused = found.ask()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert refused.json()["error"]["code"] == "no_model"
        assert found.get("/metrics").status_code == 200


def test_the_bundle_appears_and_is_changed_by_sighup(bundle: Path, tmp_path: Path) -> None:
    """A link that leads somewhere is enough; where it leads next is looked up when it is said."""
    with agent(tmp_path) as found:
        found.wait("/healthz")
        half = tmp_path / "half"
        half.mkdir()
        (half / "manifest.json").write_bytes((bundle / "manifest.json").read_bytes())
        point(tmp_path / "current", half)
        while not any(event["event"] == "model_failed" for event in found.events()):
            time.sleep(0.05)
        assert found.ask().status_code == 503
        point(tmp_path / "current", bundle)
        found.wait("/readyz")
        assert found.ask().json()["choices"][0]["message"]["content"] == "58 + 67 = 125"
        point(tmp_path / "current", renamed(bundle, tmp_path / "next", "edgekit-r1-next"))
        found.process.send_signal(signal.SIGHUP)
        while found.get("/readyz").json()["model"] != "edgekit-r1-next":
            time.sleep(0.02)
        assert found.ask().json()["model"] == "edgekit-r1-next"  # by its old name, for a while
        found.process.terminate()
        assert found.process.wait(20) == 0
    events = [event["event"] for event in found.events()]
    for wanted in (
        "started",
        "model_failed",
        "model_loaded",
        "model_swap",
        "model_freed",
        "stopped",
    ):
        assert wanted in events


def test_killed_it_is_back_in_three_seconds(bundle: Path, tmp_path: Path) -> None:
    """`kill -9` under a supervisor that starts it again: ready with the tiny model in time."""
    point(tmp_path / "current", bundle)
    with agent(tmp_path) as found:
        found.wait("/readyz")
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            found.process.kill()
            found.process.wait()
            found.process = start(tmp_path, port=found.port).process
            found.wait("/readyz")
            seconds.append(time.monotonic() - began)
        print("ready again after", *(f"{s:.2f}" for s in seconds), "s")  # noqa: T201
        # Where more wants to run than there are cores, it has its share of them.
        share = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
        assert min(seconds) <= 3 * share
        assert found.ask().status_code == 200


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def heard(receiver: socket.socket, for_s: float) -> list[str]:
    """Return what comes in some time."""
    found, end = [], time.monotonic() + for_s
    while (left := end - time.monotonic()) > 0:
        receiver.settimeout(left)
        with contextlib.suppress(TimeoutError):
            found.append(receiver.recv(1000).decode())
    return found


def hear(receiver: socket.socket, wanted: str) -> list[str]:
    """Return what comes until something does."""
    found: list[str] = []
    receiver.settimeout(20)
    while not any(state.startswith(wanted) for state in found):
        found.append(receiver.recv(1000).decode())
    return found


def test_the_watchdog_is_fed_only_while_the_engine_gets_on(
    bundle: Path, tmp_path: Path, systemd: socket.socket
) -> None:
    """READY, STATUS, WATCHDOG; none while a step hangs; RELOADING and READY at SIGHUP; STOPPING."""
    point(tmp_path / "current", bundle)
    told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with agent(tmp_path, "stall_s = 0.4", script=HANGING, told=told) as found:
        assert "READY=1" in hear(systemd, f"STATUS=serving {NAME}")
        assert heard(systemd, 1.0).count("WATCHDOG=1") >= 3
        (tmp_path / "hang").touch()
        asking = threading.Thread(target=found.ask)
        asking.start()
        found.wait("/healthz", 500)
        hear(systemd, "STATUS=a step of the engine")
        hung = heard(systemd, 1.2)
        assert "WATCHDOG=1" not in hung
        (tmp_path / "hang").unlink()
        hear(systemd, "WATCHDOG=1")
        asking.join(20)
        found.wait("/healthz")
        found.process.send_signal(signal.SIGHUP)
        hear(systemd, "RELOADING=1\nMONOTONIC_USEC=")
        hear(systemd, "READY=1")
        found.process.terminate()
        hear(systemd, "STOPPING=1")
        assert found.process.wait(20) == 0
    assert "engine_fault" in {event["event"] for event in found.events()}


def test_a_dead_engine_ends_the_agent(bundle: Path, tmp_path: Path) -> None:
    """A fault that nobody foresaw: the request is told, the process ends so that another begins."""
    point(tmp_path / "current", bundle)
    with agent(tmp_path, script=HANGING, told={"WATCHDOG_USEC": "300000"}) as found:
        found.wait("/readyz")
        (tmp_path / "die").touch()
        assert found.ask().status_code == 503
        assert found.process.wait(20) == 1
    events = {event["event"]: event for event in found.events()}
    assert "ZeroDivisionError" in events["engine_fault"]["message"]
    assert events["request"]["error"] == "EngineStoppedError"


def test_a_terminal_that_closes_ends_it(tmp_path: Path) -> None:
    """SIGHUP of a terminal that is there renews; of one that has gone it means the end."""
    (tmp_path / "agent.toml").write_text(f'[serve]\nlog = "{tmp_path}/log"\n')
    ours, theirs = os.openpty()
    command = ["/usr/bin/setsid", "--ctty", sys.executable, "-m", "device"]
    arguments = ["--config", str(tmp_path / "agent.toml"), "--bundle", str(tmp_path / "none")]
    process = subprocess.Popen(
        [*command, *arguments, "--port", "0"], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        found = Agent(tmp_path, 0, process)
        wait_for_event(found, "started")
        process.send_signal(signal.SIGHUP)
        wait_for_event(found, "model_failed")
        os.close(ours)
        wait_for_event(found, "stopped")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
