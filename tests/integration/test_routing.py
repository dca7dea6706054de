"""Hybrid routing as clients, the cloud and whoever pays for the link see it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloud_cases import KEY, MODEL, Cloud, Seen, refuse
from routing_pair import LONG, SHORT, TOO_LONG, Pair, paired, route, series
from serve_cases import NAME, SUM, post, served, settle, wait_until

from device.routing.policy import Policy


@pytest.fixture
def pair(bundle: Path, tmp_path: Path) -> Iterator[Pair]:
    with paired(bundle, tmp_path, Cloud()) as found:
        yield found


def events(response: httpx.Response) -> list[Any]:
    lines = [line for line in response.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [json.loads(data) if data != "[DONE]" else data for data in found]


def test_what_fits_stays(pair: Pair) -> None:
    """The device answers what it can; every answer says so, errors as well."""
    assert route(pair.ask(SHORT)) == "local"
    assert route(pair.ask({**SHORT, "stream": True})) == "local"
    assert route(pair.ask({"model": "other", "messages": SUM})) == "local"
    assert "x-edgekit-route" not in httpx.get(pair.server[0] + "/v1/models").headers
    assert not pair.cloud.connections
    assert series(pair, 'edgekit_route_total{reason="default",route="local"}') == 2


def test_a_server_without_routing_says_local(bundle: Path) -> None:
    """The header does not depend on the table."""
    with served(bundle) as server:
        assert route(post(server, SHORT)) == "local"


def test_too_long_a_prompt_goes_to_the_cloud(pair: Pair) -> None:
    """Whole and streamed, chats and texts, under our model's name; the reason is told."""
    whole = pair.ask(TOO_LONG)
    assert whole.json()["choices"][0]["message"]["content"] == "from the cloud"
    assert whole.json()["model"] == NAME
    assert route(whole) == "cloud; reason=context"
    streamed = pair.ask({**TOO_LONG, "stream": True})
    assert route(streamed) == "cloud; reason=context"
    *chunks, done = events(streamed)
    assert done == "[DONE]"
    assert {chunk["model"] for chunk in chunks} == {NAME}
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == "from the cloud"
    text = pair.ask({"model": NAME, "prompt": "word " * 600}, "/v1/completions")
    assert text.json()["choices"][0]["text"] == "from the cloud"
    assert pair.cloud.seen[2].head.startswith("POST /v1/completions ")
    assert series(pair, 'edgekit_route_total{reason="context",route="cloud"}') == 3


def test_the_cloud_learns_nothing_of_the_client(bundle: Path, tmp_path: Path) -> None:
    """Not its key, its headers, its name; no field that OpenAI does not have; no cookie twice."""
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    cloud = Cloud(lambda seen: seen.whole({"choices": []}, head="set-cookie: id=1; path=/\r\n"))
    with paired(bundle, tmp_path, cloud, {"keys": {digest: "camera"}}) as pair:
        body = {
            **TOO_LONG,
            "user": "me",
            "metadata": {"privacy": "any", "who": "me"},
            "top_k": 5,
            "repetition_penalty": 1.5,
            "max_tokens": 7,
            "stop": ["x"],
        }
        for _ in range(2):
            got = pair.ask(body, authorization="Bearer secret", cookie="a=b", x_mine="1")
            assert route(got) == "cloud; reason=context"
            assert "set-cookie" not in got.headers
    for seen in cloud.seen:
        assert seen.body == {"model": MODEL, "messages": LONG, "max_tokens": 7, "stop": ["x"]}
        names = {line.partition(":")[0].lower() for line in seen.head.split("\r\n")[1:]}
        assert names == {
            "accept", "accept-encoding", "authorization", "connection", "content-length",
            "content-type", "host", "user-agent",
        }  # fmt: skip
        assert f"authorization: Bearer {KEY}" in seen.head
        assert "secret" not in seen.head


@pytest.mark.parametrize("pin", ["header", "misspelt", "metadata", "capital", "client", "all"])
def test_a_pinned_request_never_leaves(bundle: Path, tmp_path: Path, pin: str) -> None:
    """It fails here: too long, or too many before it. The cloud has not even a connection."""
    config: dict[str, Any] = {
        "client": {"local_clients": ("127.0.0.1",)},
        "all": {"local_only": True},
    }
    headers = {"header": {"x_edgekit_privacy": "local"}, "misspelt": {"x_edgekit_privacy": "lcoal"}}
    keys = {"metadata": "privacy", "capital": "Privacy"}
    extra = {"metadata": {keys[pin]: "local"}} if pin in keys else {}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    forms: list[dict[str, Any]] = [{}, {"stream": True}, {"n": 2}, {"tools": [tool]}]
    settings = {"queue_limit": 0}
    with paired(bundle, tmp_path, Cloud(), settings, **config.get(pin, {})) as pair:
        for form in forms:
            got = pair.ask({**TOO_LONG, **extra, **form}, **headers.get(pin, {}))
            assert got.json()["error"]["code"] == "context_length_exceeded"
            assert route(got) == "local; reason=privacy"
        with pair.busy():
            got = pair.ask({**SHORT, **extra}, **headers.get(pin, {}))
        assert (got.status_code, route(got)) == (429, "local; reason=privacy")
        settle(pair.server[1])
        assert pair.ask({**SHORT, **extra}, **headers.get(pin, {})).status_code == 200
        assert not pair.cloud.connections


def test_too_long_a_wait_goes_to_the_cloud(bundle: Path, tmp_path: Path) -> None:
    """By the deadline that the client states, and by what answers have taken; others wait."""
    with paired(bundle, tmp_path, Cloud()) as pair:
        assert pair.ask(SHORT).status_code == 200  # how long an answer takes is known from here on
        assert (
            route(pair.ask(SHORT, x_edgekit_deadline_s="0.001")) == "local"
        )  # nothing to wait for
        with pair.busy():
            got = pair.ask(SHORT, x_edgekit_deadline_s="0.001")
            assert route(got) == "local; reason=failed"  # no cloud is as fast
            slow = pair.router._times.mean_s * 1.5
            assert route(pair.ask(SHORT, x_edgekit_deadline_s=str(slow))) == "cloud; reason=queue"
        assert pair.ask(SHORT, x_edgekit_deadline_s="soon").status_code == 400


def test_a_full_queue_goes_to_the_cloud(bundle: Path, tmp_path: Path) -> None:
    """What would be answered with 429 here is answered there."""
    with paired(bundle, tmp_path, Cloud(), {"queue_limit": 0}) as pair, pair.busy():
        assert route(pair.ask(SHORT)) == "cloud; reason=queue"
        biased = pair.ask({**SHORT, "logit_bias": {"5": 1}})
        assert (biased.status_code, route(biased)) == (429, "local; reason=tokens")


def test_before_the_first_byte_the_device_takes_over(bundle: Path, tmp_path: Path) -> None:
    """Errors, garbage, silence and cuts: the client gets a whole answer of the device."""

    def cut(seen: Seen) -> None:
        seen.begin()
        seen.connection.close()

    def error(seen: Seen) -> None:
        seen.begin()
        seen.chunk(b': hello\n\ndata: {"error": {"message": "overloaded"}}\n\n')

    def garbage(seen: Seen) -> None:
        seen.begin()
        seen.chunk(b"data: hello\n\n")

    def leave(seen: Seen) -> None:
        assert seen.was_left()

    scripts = [refuse(500), refuse(400), refuse(301, "location: /v1\r\n"), cut, error, garbage]
    scripts += [lambda seen: seen.whole([]), leave]
    with paired(bundle, tmp_path, Cloud(), max_wait_s=0.0, failures=99) as pair:
        pair.ask(SHORT)
        for stream in (False, True):
            for script in scripts:
                with pair.busy() as release:

                    def then(seen: Seen, script: Any = script, release: Any = release) -> None:
                        release.set()
                        script(seen)

                    pair.cloud.script = then
                    got = pair.ask({**SHORT, "stream": stream})
                assert "58 + 67 = 125" in got.text or "[DONE]" in got.text
                reason = "refused" if script is scripts[1] else "failed"
                assert route(got) == f"local; reason={reason}"
                settle(pair.server[1])
        assert len(pair.cloud.seen) == 2 * len(scripts)


def test_what_the_device_cannot_answer_says_what_failed(pair: Pair) -> None:
    """A prompt too long for here: 502 if the cloud failed, its own status if it refused."""
    for status, told, code in ((500, 502, "cloud_failed"), (413, 413, "cloud_refused")):
        pair.cloud.script = refuse(status)
        for stream in (False, True):
            got = pair.ask({**TOO_LONG, "stream": stream})
            assert got.status_code == told
            assert got.json()["error"]["code"] == code
            assert "does not fit the context here, and the cloud" in got.json()["error"]["message"]
            assert route(got) == "cloud; reason=context"


def test_after_the_first_byte_a_failure_is_the_last_event(pair: Pair) -> None:
    """Nothing is begun anew: the client has read a part of another answer."""

    def cut(seen: Seen) -> None:
        seen.begin()
        seen.say("from ")
        seen.connection.close()

    def early(seen: Seen) -> None:
        seen.begin()
        seen.say("from ")
        seen.send(b"0\r\n\r\n")

    def error(seen: Seen) -> None:
        seen.begin()
        seen.say("from ")
        seen.chunk(b'data: {"error": "gone"}\n\n')

    def silent(seen: Seen) -> None:
        seen.begin()
        seen.say("from ")
        assert seen.was_left()

    for script in (cut, early, error, silent):
        pair.cloud.script = script
        pair.router.breaker.succeeded()
        got = pair.ask({**TOO_LONG, "stream": True})
        first, last = events(got)
        assert got.status_code == 200
        assert first["choices"][0]["delta"]["content"] == "from "
        assert last["error"]["code"] == "cloud_failed"
        assert last["error"]["type"] == "server_error"


def test_pieces_are_passed_on_as_they_come(pair: Pair) -> None:
    """The cloud waits with the second until the client has the first."""
    got_first = threading.Event()

    def script(seen: Seen) -> None:
        seen.begin()
        seen.say("first")
        assert got_first.wait(10)
        seen.say("second")
        seen.end()

    pair.cloud.script = script
    url = f"{pair.server[0]}/v1/chat/completions"
    with httpx.stream("POST", url, json={**TOO_LONG, "stream": True}, timeout=30) as stream:
        lines = (line for line in stream.iter_lines() if line)
        assert "first" in next(lines)
        got_first.set()
        assert "second" in next(lines)
        assert next(lines) == "data: [DONE]"


def test_a_cloud_that_does_not_end_its_connection_ends_the_answer(pair: Pair) -> None:
    """All was said: what frames the end is not waited for, and no failure."""

    def script(seen: Seen) -> None:
        seen.begin()
        seen.say("all")
        seen.chunk(b"data: [DONE]\n\n")
        assert seen.was_left(1.5)  # sooner than the silence is too long

    pair.cloud.script = script
    *_, done = events(pair.ask({**TOO_LONG, "stream": True}))
    assert done == "[DONE]"
    assert pair.router.breaker._failures == 0


@pytest.mark.parametrize(("stream", "begun"), [(False, False), (True, False), (True, True)])
def test_a_client_that_leaves_takes_its_request_back(
    pair: Pair, *, begun: bool, stream: bool
) -> None:
    """The cloud's connection is closed, which tells it to stop; the breaker thinks no worse."""
    left: list[bool] = []

    def script(seen: Seen) -> None:
        if begun:
            seen.begin()
            seen.say("first")
        left.append(seen.was_left())

    pair.cloud.script = script
    url = f"{pair.server[0]}/v1/chat/completions"
    timeout = httpx.Timeout(30, read=0.3)
    with httpx.Client(timeout=timeout) as client, contextlib.suppress(httpx.ReadTimeout):
        client.post(url, json={**TOO_LONG, "stream": stream})
    wait_until(lambda: bool(left), 1.5)  # sooner than the silence is too long
    assert left == [True]
    wait_until(lambda: pair.router.budget._reserved == 0)
    assert pair.router.breaker._failures == 0


def test_a_cloud_that_is_another_server(bundle: Path, tmp_path: Path) -> None:
    """Two of our servers: the device's queue is full, the other answers as it would itself."""
    with served(bundle) as (url, far):
        config = {"base_url": f"{url}/v1", "model": NAME}
        with paired(bundle, tmp_path, Cloud(), {"queue_limit": 0}, **config) as pair, pair.busy():
            got = pair.ask(SHORT)
            assert got.json()["choices"][0]["message"]["content"] == "58 + 67 = 125"
            assert route(got) == "cloud; reason=queue"
            usage = {"stream": True, "stream_options": {"include_usage": True}}
            got = pair.ask({**SHORT, **usage})
            assert events(got)[-2]["usage"]["completion_tokens"] == 36
            assert route(got) == "cloud; reason=queue"
        settle(far)


def test_a_remote_policy_takes_away(pair: Pair) -> None:
    """Forbidden, it stays, and says why; a looser one gives back no more than the owner allows."""
    pair.router.tighten(Policy(cloud=False))
    got = pair.ask(TOO_LONG)
    assert (got.status_code, route(got)) == (400, "local; reason=forbidden")
    pair.router.tighten(Policy(reasons=frozenset({"queue"})))
    assert route(pair.ask(TOO_LONG)) == "local; reason=forbidden"
    pair.router.tighten(Policy(daily_bytes=10))
    assert route(pair.ask(TOO_LONG)) == "local; reason=budget"
    assert not pair.cloud.connections
    pair.router.tighten(Policy())
    assert pair.router.budget.limit == 10_000_000
    assert route(pair.ask(TOO_LONG)) == "cloud; reason=context"
