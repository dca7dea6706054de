"""What stands around the answers: TLS, origins, the log, keys, and bodies that do not come."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from agent_cases import agent, make_certificates, wait_for_event, wait_for_port
from serve_cases import NAME, SUM, renamed, running

from device.api.settings import Settings


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


def test_sighup_renews_keys_and_certificate(tmp_path: Path) -> None:
    """Connections to come get the new certificate, and keys that were taken out are none."""
    make_certificates(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text(f"lab {hashlib.sha256(b'old').hexdigest()}\n")
    files = f'tls_certificate = "{tmp_path}/server.pem"\ntls_key = "{tmp_path}/server.key"'
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with agent(tmp_path, f'{files}\napi_keys = "{keys}"') as found:
        wait_for_port(found.port)
        address = f"https://127.0.0.1:{found.port}/v1/models"

        def status(key: str) -> int:
            headers = {"authorization": f"Bearer {key}"}
            return httpx.get(address, verify=context, headers=headers).status_code

        assert (status("old"), status("new")) == (200, 401)
        before = ssl.get_server_certificate(("127.0.0.1", found.port))
        for name in ("pem", "key"):
            (tmp_path / f"client.{name}").replace(tmp_path / f"server.{name}")
        keys.write_text(f"lab {hashlib.sha256(b'new').hexdigest()}\n")
        found.process.send_signal(signal.SIGHUP)
        wait_for_event(found, "model_failed")  # there is no bundle: the last thing it looks for
        assert (status("old"), status("new")) == (401, 200)
        assert ssl.get_server_certificate(("127.0.0.1", found.port)) != before
        keys.write_text("lab no-digest\n")
        found.process.send_signal(signal.SIGHUP)
        wait_for_event(found, "reload_failed")
        assert (status("old"), status("new")) == (401, 200)
