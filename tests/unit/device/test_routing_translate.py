"""What the cloud is asked, and how its answers read here."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.api.schema import ChatRequest, CompletionRequest, read_body
from device.routing.errors import CloudError
from device.routing.translate import MAX_LINE_BYTES, EventStream, error_message, incoming, outgoing

STREAM = (
    b": ping\r\n\r\nevent: x\n"
    b'data: {"model": "big", "choices": [{"delta": {"content": "h\xc3\xa4"}}]}\n\n'
    b'data:{"model":"big","choices":[]}\r\n\r\ndata: [DONE]\n\n'
)


def sent(body: dict[str, Any], kind: Any = ChatRequest) -> Any:
    request = read_body(json.dumps({"model": "own", **body}).encode(), kind)
    return json.loads(outgoing(request, "big"))


def test_messages_are_openais() -> None:
    """Calls and their results are sent on; what other servers call reasoning is not, nor null."""
    call: dict[str, Any] = {
        "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}
    }  # fmt: skip
    # What clients' libraries leave in a call.
    echoed = {**call, "index": 0, "function": {**call["function"], "parsed_arguments": {}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": "me"},
        {"role": "assistant", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": [echoed]},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
    ]
    found = sent({"messages": messages})
    assert found["messages"] == [
        messages[0],
        {"role": "assistant", "tool_calls": [call]},
        messages[2],
    ]
    assert found["model"] == "big"


def test_fields_are_openais() -> None:
    """Tools and schemas with all their values, null among them; nothing of who asks."""
    schema = {"type": "object", "properties": {"a": {"enum": [None, 1], "default": None}}}
    kept = {
        "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "tool_choice": "auto",
        "seed": 2**63,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    dropped = {
        "user": "me",
        "metadata": {"a": "b"},
        "safety_identifier": "me",
        "prompt_cache_key": "me",
        "store": False,
        "top_k": 1,
        "min_p": 0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"1": 1},
        "chat_template_kwargs": {"a": 1},
        "temperature": None,
    }
    assert sent({**kept, **dropped}) == {**kept, "model": "big"}
    text = {"prompt": ["a", "b"], "max_tokens": 3}
    assert sent({**text, "stream_options": {}}, CompletionRequest) == {**text, "model": "big"}


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_a_stream_reads_alike_however_it_is_cut(cuts: list[int]) -> None:
    """Every line comes once it is whole, under our model's name; the rest is untouched."""
    events, out = EventStream("own"), b""
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        out += events.feed(STREAM[start:end])
        assert out.count(b"\n") == STREAM[:end].count(b"\n")
    assert events.is_done
    assert events.events == 3
    lines = out.decode().split("\n")
    assert lines[:3] == [": ping", "", "event: x"]
    first, second, done = [x.removeprefix("data: ") for x in lines if x.startswith("data")]
    assert json.loads(first) == {"model": "own", "choices": [{"delta": {"content": "hä"}}]}
    assert json.loads(second)["model"] == "own"
    assert done == "[DONE]"


def test_what_is_no_answer_fails() -> None:
    """Garbage, an endless line, an answer without choices."""
    with pytest.raises(CloudError, match="no JSON object"):
        EventStream("own").feed(b"data: hello\n")
    with pytest.raises(CloudError, match="a line of the cloud's stream"):
        EventStream("own").feed(b"x" * (MAX_LINE_BYTES + 1))
    for data in (b"[]", b"{", b'{"choices": 1}', b"\xff", b"[" * 100_000):
        with pytest.raises(CloudError):
            incoming(data, "own")
    assert json.loads(incoming(b'{"choices": [], "model": "big", "x": 1}', "own")) == {
        "choices": [],
        "model": "own",
        "x": 1,
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"error": {"message": "no\\nreally"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"error": {"message": 1}}', ""),
        (b"<html>", ""),
        (b'{"detail": "no"}', ""),
    ],
)
def test_errors_are_told_in_a_line(data: bytes, said: str) -> None:
    """As OpenAI and others write them."""
    assert error_message(data) == said
