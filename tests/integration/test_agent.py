"""`python -m device` as a process: idle, watched, killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_cases import NAME, SUM, build_example, point, renamed, running

from device.api.settings import Settings

HANGING = """
import pathlib, sys, time
from device.runtime.scheduler import Scheduler
own = Scheduler.step
def step(self):
    while pathlib.Path(sys.argv[1], "hang").exists():
        time.sleep(0.02)
    if pathlib.Path(sys.argv[1], "die").exists():
        raise ZeroDivisionError("a bug")
    return own(self)
Scheduler.step = step
from device.__main__ import main
sys.exit(main(sys.argv[2:]))
"""
"""An agent whose engine's steps hang while there is a file."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_example(tmp_path_factory.mktemp("agent"))


@dataclass
class Agent:
    """An agent that runs.

    Attributes:
        folder: Has its configuration, its log, and the link to its bundle.
        port: Where it listens.
        process: It.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10)

    def wait(self, path: str, status: int = 200, within_s: float = 20) -> float:
        """Wait for a status; returns how long that took."""
        began = time.monotonic()
        while time.monotonic() < began + within_s:
            assert self.process.poll() is None, "the agent has ended"
            with contextlib.suppress(httpx.TransportError):
                if self.get(path).status_code == status:
                    return time.monotonic() - began
            time.sleep(0.01)
        raise AssertionError(f"{path} is not {status} after {within_s} s")

    def ask(self) -> httpx.Response:
        body = {"model": NAME, "messages": SUM, "temperature": 0}
        address = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(address, json=body, timeout=30)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


def start(
    folder: Path, *, script: str = "", port: int = 0, told: dict[str, str] | None = None
) -> Agent:
    """Start an agent with the configuration of a folder."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    head = (
        [sys.executable, "-c", script, str(folder)] if script else [sys.executable, "-m", "device"]
    )
    command = [*head, "--config", str(folder / "agent.toml"), "--port", str(port)]
    return Agent(folder, port, subprocess.Popen(command, env={**os.environ, **(told or {})}))


@contextlib.contextmanager
def agent(
    folder: Path,
    more: str = "",
    *,
    poll_s: float = 0.1,
    script: str = "",
    told: dict[str, str] | None = None,
) -> Iterator[Agent]:
    """Run an agent; its bundle is the link `current` of the folder."""
    (folder / "agent.toml").write_text(
        f'[serve]\nbundle = "{folder}/current"\nlog = "{folder}/log"\npoll_s = {poll_s}\n{more}\n'
    )
    found = start(folder, script=script, told=told)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


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
        assert min(seconds) <= 3
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
        assert heard(systemd, 1.0).count("WATCHDOG=1") >= 5
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


def make_certificates(folder: Path) -> None:
    """Make an authority, and certificates of a server and a client by it."""

    def openssl(*arguments: str) -> None:
        command = ["openssl", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=edgekit test",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    """HTTPS with a checked certificate; clients without one of theirs get nothing; health asks."""
    make_certificates(tmp_path)
    files = "\n".join(
        f'{key} = "{tmp_path}/{name}"'
        for key, name in (("tls_certificate", "server.pem"), ("tls_key", "server.key"))
    )
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with agent(tmp_path, files) as found:
        address = f"https://127.0.0.1:{found.port}/healthz"
        wait_for_port(found.port)
        assert httpx.get(address, verify=context).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
        ask = [sys.executable, "-m", "device", "--config", str(tmp_path / "agent.toml")]
        health = [*ask, "--port", str(found.port), "--health"]
        assert subprocess.run(health, check=False).returncode == 0
    assert subprocess.run(health, check=False).returncode == 1
    with agent(tmp_path, f'{files}\ntls_client_ca = "{tmp_path}/ca.pem"') as found:
        address = f"https://127.0.0.1:{found.port}/healthz"
        wait_for_port(found.port)
        with pytest.raises(httpx.TransportError):
            httpx.get(address, verify=context)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        assert httpx.get(address, verify=context).status_code == 200


def test_a_key_of_another_certificate_is_told(tmp_path: Path) -> None:
    """Before anything is loaded, by name."""
    make_certificates(tmp_path)
    files = f'tls_certificate = "{tmp_path}/server.pem"\ntls_key = "{tmp_path}/client.key"'
    (tmp_path / "agent.toml").write_text(f"[serve]\n{files}\n")
    command = [sys.executable, "-m", "device", "--config", str(tmp_path / "agent.toml"), "--port"]
    done = subprocess.run([*command, "0"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 15
    assert "server.pem" in done.stderr


def wait_for_port(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on {port}")


def test_origins_are_let_in_by_name(bundle: Path) -> None:
    """Off by default; a page of a named origin may ask and read the id, another may not."""
    own, other = {"origin": "https://a.example"}, {"origin": "https://b.example"}
    with running(bundle) as server:
        answer = httpx.get(f"{server.address}/v1/models", headers=own)
        assert "access-control-allow-origin" not in answer.headers
    with running(bundle, Settings(cors_origins=("https://a.example",))) as server:
        address = f"{server.address}/v1/chat/completions"
        asked = {**own, "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "authorization,content-type"
        allowed = httpx.options(address, headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        assert httpx.options(address, headers={**asked, **other}).status_code == 400
        body = {"model": NAME, "messages": SUM, "stream": True}
        answer = httpx.post(address, headers=own, json=body)
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert answer.text.endswith("data: [DONE]\n\n")


def test_the_log_has_tokens_and_times_but_no_texts(bundle: Path, tmp_path: Path) -> None:
    """Streamed, whole, refused, left: a line each; neither question nor answer nor key."""
    with running(bundle, log=str(tmp_path / "log")) as server:
        address = f"{server.address}/v1/chat/completions"
        secret = {"authorization": "Bearer sk-secret"}
        body = {"model": NAME, "messages": SUM, "temperature": 0}
        whole = httpx.post(address, json=body, headers=secret)
        httpx.post(address, json={**body, "stream": True}, headers=secret)
        httpx.post(address, json={**body, "foo": 1}, headers=secret)
        with httpx.stream("POST", address, json={**body, "stream": True}) as stream:
            next(stream.iter_lines())
        while len((tmp_path / "log").read_text().splitlines()) < 4:
            time.sleep(0.02)
    text = (tmp_path / "log").read_text()
    assert not any(word in text for word in ("58 +", "= 125", "carry", "What", "sk-secret"))
    found = [json.loads(line) for line in text.splitlines()]
    first, second, third, fourth = (line for line in found if line["event"] == "request")
    assert first["id"] == whole.headers["x-request-id"]
    for line in (first, second):
        assert (line["status"], line["model"], line["finish_reason"]) == (200, NAME, "stop")
        assert (line["prompt_tokens"], line["completion_tokens"]) == (15, 36)
        assert 0 < line["ttft_s"] < line["seconds"] < 30
        assert (line["client"], line["error"]) == ("127.0.0.1", None)
    assert (third["status"], third["error"]) == (400, "invalid_request_error")
    assert third["completion_tokens"] == 0
    assert (fourth["status"], fourth["finish_reason"]) == (200, "cancelled")


def test_a_body_that_does_not_come_holds_up_no_change(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who sends half of a body keeps no model: it is changed at once."""
    with running(bundle, Settings(drain_s=20)) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
            time.sleep(0.1)
            began = time.monotonic()
            assert server.swap(renamed(bundle, tmp_path / "next", "next")) == "beside"
            assert time.monotonic() - began < 10
    assert capfd.readouterr().err == ""  # nor is it an error that the client goes


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


def wait_for_event(found: Agent, name: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError):
            if any(event["event"] == name for event in found.events()):
                return
        time.sleep(0.02)
    raise AssertionError(f"no {name} in the log")
