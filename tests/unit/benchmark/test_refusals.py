"""What an endpoint's refusals mean, and that each has a remedy."""

from __future__ import annotations

import json

import httpx
import pytest

from edgekit.benchmark.endpoint import Endpoint
from edgekit.benchmark.refusals import broken, refusal


def refused(status: int, body: bytes, **headers: str) -> str:
    return str(refusal("http://it/v1", "m", httpx.Response(status, headers=headers), body))


def openai(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "said", "remedy"),
    [
        (
            401,
            openai("Incorrect API key."),
            "asks for an API key (401): Incorrect",
            "--api-key-env",
        ),
        (404, openai("no", "model_not_found"), "has no model 'm': no", "--model"),
        (404, b'{"error": "model \'m\' not found"}', "has no model 'm'", "--model"),
        (404, b"<html>Not Found</html>", "is not there (404): <html>", "mostly ends in /v1"),
        (405, b"", "is not there (405)", "mostly ends in /v1"),
        (429, openai("slow down"), "takes no more requests (429): slow down", "--streams"),
        (400, openai("too long"), "refused the request (400): too long", ""),
        (400, b"", "refused the request (400)", "server's log"),
        (503, b"x\n\x1b" + b"y" * 999, "failed (503): x ?yyy", "server's log"),
        (500, b'{"detail": [1]}', "failed (500)", "server's log"),
        (500, b"[3]", "failed (500): [3]", "server's log"),
    ],
)
def test_refusals(status: int, body: bytes, said: str, remedy: str) -> None:
    """The status in words, what the server says of it in one line, and what to do."""
    error = refused(status, body)
    assert said in error
    assert remedy in error
    assert len(error) < 500


def test_when_to_come_back() -> None:
    """Retry-After is passed on."""
    assert "(429, come back after 7 s)" in refused(429, b"", **{"retry-after": "7"})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectError("refused"), "cannot connect to u: refused"),
        (httpx.ConnectTimeout(""), "cannot connect to u: ConnectTimeout"),
        (httpx.ReadTimeout(""), "u sent nothing for 5 s. Allow more with --timeout-s"),
        (httpx.ReadError("reset"), "the connection to u broke off: reset"),
    ],
)
def test_broken_connections(error: httpx.HTTPError, said: str) -> None:
    """Not there, silent, or gone."""
    assert said in str(broken("u", error, 5.0))


def test_keys_stay_out_of_messages_and_local_servers_are_known() -> None:
    """An endpoint's repr may end in a traceback."""
    assert "secret" not in repr(Endpoint("http://it/v1", api_key="secret"))
    local = ("http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:80/v1")
    assert all(Endpoint(url).is_local for url in local)
    assert not Endpoint("http://orin.local:8000/v1").is_local
