"""The server as its clients see it: OpenAI's own, and curl's kind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serve_cases import NAME, SUM, connect, post, served, settle, wait_until

from device.api.service import Service
from device.api.settings import Settings, read_keys
from edgekit.errors import StorageError


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as made:
        yield made
    settle(server[1])


def test_openais_client_gets_its_answer(client: openai.OpenAI) -> None:
    """Whole: text, reasoning under both names, usage, as the client's types have them."""
    done = client.chat.completions.create(model=NAME, messages=SUM, temperature=0)
    message = done.choices[0].message
    assert message.content == "58 + 67 = 125"
    extra = message.model_extra or {}
    assert extra["reasoning_content"] == extra["reasoning"]
    assert "carry 1" in extra["reasoning"]
    assert done.choices[0].finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.prompt_tokens == 15
    assert done.usage.completion_tokens_details is not None
    assert 0 < (done.usage.completion_tokens_details.reasoning_tokens or 0) < 36
    assert client.models.list().data[0].id == NAME


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI) -> None:
    """Joined, the deltas are the whole answer; usage comes last, if it is asked for."""
    stream = client.chat.completions.create(
        model=NAME,
        messages=SUM,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasoning, reasons, usage = "", "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasoning += (choice.delta.model_extra or {}).get("reasoning_content", "")
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert text == "58 + 67 = 125"
    assert reasoning.startswith("8+7+0=15")
    assert reasons == ["stop"]
    assert usage is not None
    assert usage.completion_tokens == 36


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    """/v1/completions streams and answers whole; 16 tokens unless more are asked for."""
    done = client.completions.create(model=NAME, prompt="To be, or not", temperature=0)
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.completion_tokens == 16
    stream = client.completions.create(
        model=NAME, prompt="To be, or not", temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in stream) == done.choices[0].text


def test_stops_limits_and_seeds(client: openai.OpenAI) -> None:
    """A stop string ends the text before it, a limit cuts it, a seed gives the same again."""

    def ask(**more: Any) -> Any:
        return client.chat.completions.create(model=NAME, messages=SUM, **more)

    stopped = ask(temperature=0, stop=["carry"])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == ""
    cut = ask(temperature=0, max_completion_tokens=5)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 5)
    # The first runs the prompt, the others find it in the cache: rounded otherwise.
    _, first, second, other = (
        client.completions.create(
            model=NAME, prompt="To be", temperature=2, top_p=1, seed=seed, max_tokens=40
        )
        .choices[0]
        .text
        for seed in (7, 7, 7, 8)
    )
    assert first == second != other


def test_biases_and_penalties(server: tuple[str, Service], client: openai.OpenAI) -> None:
    """A token that is forbidden is not said; a penalty changes what would be repeated."""
    service = server[1]
    (digit,) = service.model.tokenizer.encode("8")
    text = {"model": NAME, "prompt": "58 + 67 =", "temperature": 0, "max_tokens": 24}
    plain = client.completions.create(**text)  # type: ignore[call-overload]  # by name
    biased = client.completions.create(**text, logit_bias={str(digit): -100})  # type: ignore[call-overload]  # by name
    assert "8" not in biased.choices[0].text
    bound = client.completions.create(**text, frequency_penalty=2)  # type: ignore[call-overload]  # by name
    assert len({plain.choices[0].text, bound.choices[0].text}) == 2


def test_tokens_of_a_text_and_back(server: tuple[str, Service]) -> None:
    """As the model gets them; a conversation is written by its template."""
    found = post(server, {"prompt": "To be, or not"}, "/tokenize").json()
    assert found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 512
    back = post(server, {"tokens": found["tokens"]}, "/detokenize").json()
    assert back == {"prompt": "To be, or not"}
    assert post(server, {"messages": SUM}, "/tokenize").json()["count"] == 15
    for body, path in (({}, "/tokenize"), ({"tokens": [99999]}, "/detokenize")):
        assert post(server, body, path).status_code == 400


def test_many_at_once_each_get_their_own(
    server: tuple[str, Service], client: openai.OpenAI
) -> None:
    """Forty questions over four slots: every sum is right, and beginnings in common are reused."""
    sums = [(n, 97 - 2 * n) for n in range(10, 50)]
    answers: dict[tuple[int, int], str] = {}

    def ask(a: int, b: int) -> None:
        done = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": f"What is {a} + {b}?"}], temperature=0
        )
        answers[a, b] = done.choices[0].message.content or ""

    pairs = [(a, b) for a, b in sums if b > 0]
    threads = [threading.Thread(target=ask, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == len(pairs)
    wrong = [pair for pair in pairs if not answers[pair].endswith(f"= {sum(pair)}")]
    assert len(wrong) <= 1  # the model's own mistakes, if any
    assert server[1].engine.is_alive


@pytest.mark.parametrize(
    ("body", "status", "said", "param"),
    [
        (b"{", 400, "is not JSON", None),
        ({"model": NAME}, 400, "missing required field `messages`", None),
        ({"model": NAME, "messages": []}, 400, "length >= 1", "messages"),
        ({"model": "gpt-4o", "messages": SUM}, 404, "does not exist", "model"),
        ({"model": NAME, "messages": SUM, "foo": 1}, 400, "Unrecognized request argument", "foo"),
        ({"model": NAME, "messages": SUM, "max_tokens": 0}, 400, ">= 1", "max_tokens"),
        ({"model": NAME, "messages": SUM, "temperature": 3}, 400, "<= 2", "temperature"),
        ({"model": NAME, "messages": SUM, "stop": [""]}, 400, "none empty", "stop"),
        ({"model": NAME, "messages": SUM, "n": 17}, 400, "<= 16", "n"),
        ({"model": NAME, "messages": SUM, "store": True}, 400, "not served by this", "store"),
        (
            {"model": NAME, "messages": SUM, "logit_bias": {"99999": 1}},
            400,
            "no token",
            "logit_bias",
        ),
        ({"model": NAME, "messages": SUM, "presence_penalty": 3}, 400, "<= 2", "presence_penalty"),
        (
            {"model": NAME, "messages": [{"role": "user", "content": "word " * 600}]},
            400,
            "the context holds 512",
            "messages",
        ),
    ],
)
def test_bad_requests_are_told_in_openais_shape(
    server: tuple[str, Service], body: Any, status: int, said: str, param: str | None
) -> None:
    """Status, message and field; streamed requests get the same, before any event."""
    answers = [post(server, body)]
    if isinstance(body, dict):
        answers.append(post(server, {**body, "stream": True}))
    for answer in answers:
        assert answer.status_code == status
        error = answer.json()["error"]
        assert said in error["message"]
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"


def test_other_paths_and_sizes(bundle: Path) -> None:
    """Unknown paths and methods are OpenAI's errors, too; a large body is not read to its end."""
    with served(bundle, Settings(body_limit_bytes=1000), slots=1) as server:
        assert httpx.get(f"{server[0]}/v1/nothing").json()["error"]["message"] == "Not Found"
        assert httpx.get(f"{server[0]}/v1/chat/completions").status_code == 405
        large = post(server, {"model": NAME, "messages": SUM, "user": "x" * 2000})
        assert large.status_code == 413
        assert post(server, {"model": NAME, "messages": SUM, "max_tokens": 1}).status_code == 200


def test_the_queue_is_bounded(bundle: Path) -> None:
    """Beyond it clients are told to come back, with 429 and when; none of the others notices."""
    with served(bundle, Settings(queue_limit=1), slots=1) as server:
        statuses: list[tuple[int, str | None]] = []

        def ask() -> None:
            body = {"model": NAME, "messages": SUM, "temperature": 1, "max_tokens": 200}
            answer = post(server, body)
            statuses.append((answer.status_code, answer.headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert (429, "1") in statuses
        assert statuses.count((200, None)) >= 2
        assert {status for status, _ in statuses} == {200, 429}
        settle(server[1])


def test_who_leaves_the_queue_gives_up_its_place(bundle: Path) -> None:
    """A stream that has not begun is watched, too: the next in line does not wait for it."""
    body = {"model": NAME, "messages": SUM, "temperature": 1.9, "max_tokens": 400, "stream": True}
    with served(bundle, slots=1) as server, contextlib.ExitStack() as opened:
        scheduler = server[1].engine._scheduler
        url = f"{server[0]}/v1/chat/completions"
        running = opened.enter_context(httpx.stream("POST", url, json={**body, "n": 8}))
        lines = running.iter_lines()
        next(lines)
        data = json.dumps(body).encode()
        with connect(server[0]) as caller:
            caller.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            caller.sendall(b"content-length: %d\r\n\r\n" % len(data) + data)
            wait_until(lambda: scheduler.waiting == 8)
        gone = 'finished_reason="cancelled"'
        wait_until(lambda: gone in httpx.get(f"{server[0]}/metrics").text)
        assert scheduler.waiting >= 1  # those who came before it wait still
        running.close()
        settle(server[1])


def test_a_deadline_is_kept(bundle: Path) -> None:
    """What is not answered in its time is 504, and its slot is free."""
    with served(bundle, Settings(timeout_s=0.001), slots=1) as server:
        answer = post(server, {"model": NAME, "messages": SUM})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        settle(server[1])


def test_keys_name_clients(bundle: Path, tmp_path: Path) -> None:
    """Without a key, or with a wrong one, nothing is told but that; health needs none."""
    file = tmp_path / "keys"
    file.write_text(f"# line\nlab {hashlib.sha256(b'secret').hexdigest()}\n")
    with served(bundle, Settings(keys=read_keys(file)), slots=1) as (address, service):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = httpx.get(f"{address}/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        right = {"authorization": "Bearer secret"}
        assert httpx.get(f"{address}/v1/models", headers=right).status_code == 200
        assert httpx.get(f"{address}/readyz").status_code == 200
        assert service.settings.client_of("Bearer secret", "1.2.3.4") == "lab"
    for text, said in (("lab secret", "line 1"), ("", "no keys")):
        file.write_text(text)
        with pytest.raises(StorageError, match=said) as caught:
            read_keys(file)
        assert "secret" not in str(caught.value)


def test_metrics_count_what_happened(bundle: Path) -> None:
    """Names as vLLM's; what was reused of a prompt and how requests ended are told."""
    with served(bundle, slots=1) as server:
        body = {"model": NAME, "messages": SUM, "temperature": 0}
        post(server, body)
        post(server, body)
        post(server, {**body, "foo": 1})
        text = httpx.get(f"{server[0]}/metrics").text
    label = f'model_name="{NAME}"'
    assert f"edgekit_prompt_tokens_total{{{label}}} 30.0" in text
    assert f"edgekit_prefix_cache_hits_total{{{label}}} 14.0" in text
    assert f"edgekit_generation_tokens_total{{{label}}} 72.0" in text
    assert f'edgekit_request_success_total{{finished_reason="stop",{label}}} 2.0' in text
    assert f'edgekit_request_refused_total{{{label},status="400"}} 1.0' in text
    assert f"edgekit_time_to_first_token_seconds_count{{{label}}} 2.0" in text


def test_the_command_serves_and_ends_what_runs(bundle: Path) -> None:
    """`edgekit serve`: ready, answers, and at SIGTERM lets a stream come to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(200):
                try:
                    if httpx.get(f"{address}/readyz").status_code == 200:
                        break
                except httpx.ConnectError:
                    time.sleep(0.05)
            body = {"model": NAME, "messages": SUM, "temperature": 0, "stream": True}
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert list(lines)[-2] == "data: [DONE]"
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(bundle: Path) -> None:
    """One line, a remedy, and no wait."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 11
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "digests" not in done.stderr
