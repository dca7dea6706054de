"""What holds a request back from the cloud: bytes, a broken endpoint, a certificate, the disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloud_cases import Cloud, Seen, answer, refuse
from routing_pair import TOO_LONG, Pair, paired, route, series
from serve_cases import wait_until

from device.routing.wire import WINDOW_BYTES
from edgekit.errors import ConfigError


@pytest.fixture
def pair(bundle: Path, tmp_path: Path) -> Iterator[Pair]:
    with paired(bundle, tmp_path, Cloud()) as found:
        yield found


def left(pair: Pair) -> float:
    return series(pair, "edgekit_cloud_budget_left_bytes")


def test_bytes_are_those_of_the_wire(bundle: Path, tmp_path: Path) -> None:
    """What the cloud's socket got and gave, heads included; a restart remembers them."""
    cloud = Cloud()
    with paired(bundle, tmp_path, cloud) as pair:
        for stream in (False, True, False):
            assert pair.ask({**TOO_LONG, "stream": stream}).status_code == 200
        assert cloud.connections == 1  # kept open
        sent = series(pair, 'edgekit_cloud_bytes_total{direction="sent"}')
        received = series(pair, 'edgekit_cloud_bytes_total{direction="received"}')
        assert (sent, received) == (cloud.received, cloud.sent)
        assert left(pair) == 10_000_000 - sent - received
    written = json.loads((tmp_path / "budget.json").read_text())
    assert written["used"] == sent + received
    with paired(bundle, tmp_path, cloud) as pair:
        assert left(pair) == 10_000_000 - sent - received


def test_a_budget_that_is_too_small_sends_nothing(bundle: Path, tmp_path: Path) -> None:
    """Request and what is set aside for the answer have to fit; the device says why it refuses."""
    with paired(bundle, tmp_path, Cloud(), daily_bytes=20_000) as pair:
        got = pair.ask(TOO_LONG)
        assert (got.status_code, route(got)) == (400, "local; reason=budget")
        assert not pair.cloud.connections


def test_an_answer_that_takes_all_of_the_budget_is_cut(bundle: Path, tmp_path: Path) -> None:
    """Whole: an error. Streamed: an error event. No more is taken than was on its way already."""

    def endless(seen: Seen) -> None:
        if seen.body.get("stream"):
            seen.begin()
            for _ in range(10_000):
                seen.say("word")
        seen.whole({"choices": [], "padding": "x" * 1_000_000})

    for stream in (False, True):
        folder = tmp_path / str(stream)
        folder.mkdir()
        cloud = Cloud(endless)
        with paired(bundle, folder, cloud, daily_bytes=50_000, answer_bytes=1000) as pair:
            got = pair.ask({**TOO_LONG, "stream": stream})
            if stream:
                last = json.loads(got.text.strip().rpartition("data: ")[2])
                assert last["error"]["code"] == "cloud_budget_spent"
                assert len(got.content) > 10_000
            else:
                assert (got.status_code, route(got)) == (400, "local; reason=budget")
            assert left(pair) == 0
            received = series(pair, 'edgekit_cloud_bytes_total{direction="received"}')
            assert received <= 50_000 + WINDOW_BYTES
            assert route(pair.ask(TOO_LONG)) == "local; reason=budget"
            assert pair.router.breaker.state() == "closed"
            assert cloud.connections == 1


def test_a_disk_that_fails_sends_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that cannot be remembered are not used."""

    def full(path: Path, ledger: Any) -> None:
        del ledger
        from edgekit.errors import StorageError

        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("device.routing.budget._write", full)
        assert route(pair.ask(TOO_LONG)) == "local; reason=budget"
    assert not pair.cloud.connections
    assert route(pair.ask(TOO_LONG)) == "cloud; reason=context"


def test_an_endpoint_that_fails_is_let_alone(bundle: Path, tmp_path: Path) -> None:
    """Three failures open the circuit, one request probes it; a refusal is no failure."""
    with paired(bundle, tmp_path, Cloud(), backoff_s=0.4) as pair:
        pair.cloud.script = refuse(400)
        for _ in range(4):
            assert route(pair.ask(TOO_LONG)) == "cloud; reason=context"
        pair.cloud.script = refuse(503)
        for _ in range(3):
            assert pair.ask(TOO_LONG).status_code == 502
        before = len(pair.cloud.seen)
        got = pair.ask(TOO_LONG)
        assert (got.status_code, route(got)) == (400, "local; reason=circuit")
        assert len(pair.cloud.seen) == before
        pair.cloud.script = Cloud().script
        pair.router.breaker._until_s = 0.0
        assert route(pair.ask(TOO_LONG)) == "cloud; reason=context"
        assert pair.router.breaker.state() == "closed"
        pair.cloud.script = refuse(429, "retry-after: 100\r\n")
        assert pair.ask(TOO_LONG).status_code == 502
        assert route(pair.ask(TOO_LONG)) == "local; reason=circuit"
        assert series(pair, 'edgekit_route_total{reason="circuit",route="local"}') == 2


def test_a_link_that_is_down_is_not_tried(bundle: Path, tmp_path: Path) -> None:
    """Nothing listens: one request finds out. A provider that knows better is asked instead."""
    config: dict[str, Any] = {"base_url": "http://127.0.0.1:9/v1", "link_pause_s": 60.0}
    with paired(bundle, tmp_path, Cloud(), **config) as pair:
        got = pair.ask(TOO_LONG)
        assert got.status_code == 502
        assert "cannot be reached" in got.json()["error"]["message"]
        assert route(pair.ask(TOO_LONG)) == "local; reason=link"
    with paired(bundle, tmp_path, Cloud()) as pair:
        pair.router._link = lambda: False
        assert route(pair.ask(TOO_LONG)) == "local; reason=link"
        pair.router._link = lambda: True
        assert route(pair.ask(TOO_LONG)) == "cloud; reason=context"


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a self-signed certificate of the loopback address, and a server's side of it."""
    path, key = folder / "ca.pem", folder / "key.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    named = ["-subj", "/CN=cloud", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(path)]
    subprocess.run([*made.split(), *named, *files], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return path, context


def test_certificates_are_checked(bundle: Path, tmp_path: Path) -> None:
    """An endpoint that nobody vouches for gets no request; ca_file vouches. TLS costs bytes."""
    path, context = certificate(tmp_path)
    cloud = Cloud(tls=context)
    with paired(bundle, tmp_path, cloud) as pair:
        got = pair.ask(TOO_LONG)
        assert got.status_code == 502
        assert "CERTIFICATE_VERIFY_FAILED" in got.json()["error"]["message"]
    assert not cloud.seen
    with paired(bundle, tmp_path, cloud, ca_file=str(path)) as pair:
        assert route(pair.ask({**TOO_LONG, "stream": True})) == "cloud; reason=context"
        sent = series(pair, 'edgekit_cloud_bytes_total{direction="sent"}')
        received = series(pair, 'edgekit_cloud_bytes_total{direction="received"}')
        assert cloud.received + 200 < sent < cloud.received + 2000
        assert cloud.sent + 200 < received < cloud.sent + 5000


def test_proxies_and_netrc_of_the_environment_are_not_asked(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts go where the table says, with the key that it says."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with httpx.Client(trust_env=False) as client:
        got = client.post(f"{pair.server[0]}/v1/chat/completions", json=TOO_LONG)
    assert route(got) == "cloud; reason=context"
    assert "secret" not in pair.cloud.seen[0].head
    assert "Basic" not in pair.cloud.seen[0].head


def test_the_command_serves_what_its_file_says(bundle: Path, tmp_path: Path) -> None:
    """A wrong file is told before anything is loaded; a right one routes, and says where to."""
    path, table = tmp_path / "routing.toml", tmp_path / "budget.json"
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--routing", str(path)]
    path.write_text("[routing]\nenable = true\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == ConfigError.exit_code
    assert "unknown key 'enable'" in done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command += ["--port", address.rpartition(":")[2]]
    with Cloud().running() as url:
        lines = ["[routing]", "enabled = true", f'base_url = "{url}"', 'model = "big"']
        lines += [f'state_file = "{table}"', "daily_bytes = 1_000_000"]
        path.write_text("\n".join(lines))
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: answers(f"{address}/readyz"), 60)
                got = httpx.post(f"{address}/v1/chat/completions", json=TOO_LONG)
                assert route(got) == "cloud; reason=context"
                process.send_signal(signal.SIGTERM)
                _, said = process.communicate(timeout=30)
                assert process.returncode == 0
                assert f"requests may go to {url}, at most 1000000 bytes a day" in said
            finally:
                process.kill()
    assert 0 < json.loads(table.read_text())["used"] < 20_000


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.ConnectError):
        return httpx.get(url).status_code == 200
    return False


def test_the_log_has_no_word_of_the_prompt(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Endpoints quote prompts in their errors: the client is told, the log is not."""
    pair.cloud.script = lambda seen: seen.whole({"error": {"message": "bad: my secret"}}, 500)
    got = pair.ask(TOO_LONG)
    assert "bad: my secret" in got.json()["error"]["message"]
    assert "the cloud answered 500" in caplog.text
    assert "secret" not in caplog.text


def garbage(seen: Seen) -> None:
    """Send the prompt back as what is no HTTP: as a status line, or where a chunk should begin."""
    if seen.body.get("stream"):
        seen.begin()
        seen.say("first")
    seen.send(b"my secret\r\n\r\n")
    seen.connection.shutdown(socket.SHUT_RDWR)


def typed(seen: Seen) -> None:
    """Send the prompt back as a type."""
    seen.send(b"HTTP/1.1 200 X\r\ncontent-type: my secret\r\ncontent-length: 2\r\n\r\n{}")


@pytest.mark.parametrize("script", [garbage, typed])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_is_not_quoted_in_the_log(
    pair: Pair, caplog: pytest.LogCaptureFixture, script: Callable[[Seen], None], *, stream: bool
) -> None:
    """A broken endpoint may send the prompt back as anything: libraries quote what they refuse."""
    pair.cloud.script = script
    got = pair.ask({**TOO_LONG, "stream": stream})
    assert "cloud_failed" in got.text
    assert "the cloud" in caplog.text
    assert "secret" not in caplog.text


def test_what_a_link_carried_is_counted_even_unread(bundle: Path, tmp_path: Path) -> None:
    """A client leaves a fast answer: what the kernel took in meanwhile went over the link, too."""
    full, took = threading.Event(), list[int]()

    def burst(seen: Seen) -> None:
        seen.begin()
        seen.say("first")
        seen.connection.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(400):
                seen.say("word " * 2000)
        full.set()
        assert seen.was_left()
        took.append(carried(seen.connection))

    with paired(bundle, tmp_path, Cloud(burst)) as pair:
        url = f"{pair.server[0]}/v1/chat/completions"
        with httpx.stream("POST", url, json={**TOO_LONG, "stream": True}, timeout=30) as stream:
            next(stream.iter_lines())
            assert full.wait(20)  # nobody reads: what is on its way fills what there is
        wait_until(lambda: bool(took))
        received = series(pair, 'edgekit_cloud_bytes_total{direction="received"}')
        assert took[0] <= received <= pair.cloud.sent
        assert 10_000_000 - left(pair) >= received


def carried(connection: socket.socket) -> int:
    """Return how many bytes the other side's kernel has acknowledged."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int(struct.unpack_from("Q", info, 120)[0])


def test_one_request_probes_however_many_come(bundle: Path, tmp_path: Path) -> None:
    """Thirty streams at once after the pause: one is sent; the others stay."""
    release = threading.Event()

    def slow(seen: Seen) -> None:
        assert release.wait(20)
        answer(seen)

    config: dict[str, Any] = {"connections": 64, "read_timeout_s": 20.0}
    with paired(bundle, tmp_path, Cloud(slow), **config) as pair:
        for _ in range(3):
            pair.router.breaker.failed(pair.router.breaker.begin())
        pair.router.breaker._until_s = 0.0
        body = {**TOO_LONG, "stream": True}

        async def crowd() -> list[str]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=30, limits=limits) as client:
                url = f"{pair.server[0]}/v1/chat/completions"
                asked = [asyncio.create_task(client.post(url, json=body)) for _ in range(30)]
                done, _ = await asyncio.wait(asked, timeout=5)
                assert len(done) == 29
                release.set()
                return [route(got) for got in await asyncio.gather(*asked)]

        routes = asyncio.run(crowd())
        assert sorted(set(routes)) == ["cloud; reason=context", "local; reason=circuit"]
        assert len(pair.cloud.seen) == 1


def test_a_stream_without_an_event_is_no_answer(pair: Pair) -> None:
    """Only the end of one: the device may still answer, or says that the cloud failed."""

    def script(seen: Seen) -> None:
        seen.begin()
        seen.end()

    pair.cloud.script = script
    got = pair.ask({**TOO_LONG, "stream": True})
    assert (got.status_code, got.json()["error"]["code"]) == (502, "cloud_failed")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_in_a_hurry_opens_no_circuit(pair: Pair, *, stream: bool) -> None:
    """Deadlines that no endpoint could keep say nothing of this one."""
    pair.cloud.script = lambda seen: wait_until(seen.was_left)
    for _ in range(4):
        got = pair.ask({**TOO_LONG, "stream": stream}, x_edgekit_deadline_s="0.1")
        assert (got.status_code, route(got)) == (502, "cloud; reason=context")
    assert pair.router.breaker.state() == "closed"
    pair.cloud.script = answer
    assert pair.ask({**TOO_LONG, "stream": stream}).status_code == 200
