"""Any request is answered, or refused as the client's mistake: none is an error of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_schema import check
from serve_cases import NAME, SUM, build_example, post, served, settle

from device.api.schema import ChatRequest, CompletionRequest
from device.api.service import Service

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": NAME, "messages": SUM, "max_tokens": 2},
    TEXT: {"model": NAME, "prompt": "To be", "max_tokens": 2},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Service]]:
    with served(build_example(tmp_path_factory.mktemp("serve"))) as found:
        yield found
        settle(found[1])


@pytest.fixture(scope="module")
def caller(server: tuple[str, Service]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=30) as made:
        yield made


def _held_to(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def _nested(field: Any, depth: int) -> bytes:
    """Return a request with something nested deeper than a client's JSON writer would go."""
    deep = b'{"items":' * depth + b"{}" + b"}" * depth
    return json.dumps({**BODIES[CHAT], **field}).encode().replace(b'"HERE"', deep)


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (CHAT, {"repetition_penalty": 1e-40}, "repetition_penalty"),
        (CHAT, {"top_k": -2}, "top_k"),
        (CHAT, {"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        (CHAT, {"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs"),
        (CHAT, {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        (CHAT, {"min_tokens": 3}, "min_tokens"),
        (CHAT, {"min_tokens": 1, "response_format": {"type": "json_object"}}, "min_tokens"),
        (CHAT, {"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": [[]]}, "prompt"),
        (TEXT, {"prompt": ["To be", ""]}, "prompt"),
        (TEXT, {"prompt": "word " * 600}, "prompt"),
    ],
)
def test_what_cannot_be_served_is_the_client_s_mistake(
    server: tuple[str, Service], path: str, more: dict[str, Any], param: str
) -> None:
    """Values that pass each field's own check, and fail further in, are told with their field."""
    answer = post(server, {**BODIES[path], **more}, path)
    assert answer.status_code == 400, answer.text
    check("ErrorResponse", answer.json())
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("depths", [(200, 450, 700, 5000), range(900, 1000, 4)])
def test_what_is_nested_too_deeply(caller: httpx.Client, depths: Sequence[int]) -> None:
    """Whoever finds it too deep, a reader of JSON, a writer or one of schemas, it is refused."""
    function = {"name": "a", "parameters": "HERE"}
    fields = (
        {"response_format": _held_to("HERE")},
        {"tools": [{"type": "function", "function": function}]},
        {"audio": "HERE"},
    )
    for depth in depths:
        for field in fields:
            answer = caller.post(CHAT, content=_nested(field, depth))
            assert answer.status_code == 400, answer.text
            check("ErrorResponse", answer.json())
            assert len(answer.content) < 1000


TEXTS = st.text(max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXTS,
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
SCHEMAS = st.recursive(
    st.one_of(
        st.booleans(),
        st.fixed_dictionaries({}, optional={"type": st.sampled_from(["integer", "string", "x"])}),
        st.just({"$ref": "#"}),
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", ["object", "null"]]),
            "properties": st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
            "required": st.lists(st.sampled_from(["a", "c"]), max_size=2),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "allOf": st.lists(inner, max_size=2),
            "$defs": st.dictionaries(st.just("it"), inner),
            "$ref": st.sampled_from(["#/$defs/it", "#", "x"]),
            "enum": st.lists(SCALARS, max_size=2),
            "additionalProperties": inner,
            "pattern": TEXTS,
            "minLength": st.integers(-1, 9),
        },
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["a", "b", "b-_9", "ä"])
CALLS = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": NAMES}, optional={"arguments": st.one_of(TEXTS, JSON.map(json.dumps))}
        )
    },
    optional={"id": TEXTS, "type": st.just("function"), "index": st.integers()},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.one_of(
            TEXTS, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}))
        ),
        "tool_calls": st.lists(CALLS, max_size=2),
        "tool_call_id": TEXTS,
        "reasoning_content": TEXTS,
    },
)
TOOLS = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {"name": NAMES}, optional={"parameters": SCHEMAS, "strict": st.booleans()}
        ),
    }
)
NEAR: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGES, max_size=4),
    "tools": st.lists(TOOLS, max_size=2),
    "tool_choice": st.sampled_from(["none", "auto", "required"]),
    "response_format": st.one_of(
        st.builds(_held_to, SCHEMAS), st.sampled_from([{"type": "json_object"}, {"type": "text"}])
    ),
    "stop": st.lists(TEXTS, max_size=5),
    "prompt": st.lists(st.one_of(TEXTS, st.lists(st.integers(-1, 5000), max_size=3)), max_size=3),
    "logit_bias": st.dictionaries(st.integers(-1, 5000).map(str), st.integers(-101, 101)),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["messages", "add_generation_prompt", "namespace", "range", "x"]), JSON
    ),
    "stream_options": st.just({"include_usage": True}),
}
LIMITED = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "min_p": st.floats(0, 1),
    "top_k": st.integers(-1, 9),
    "repetition_penalty": st.floats(0.01, 10),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "n": st.integers(1, 3),
    "seed": st.integers(),
    "top_logprobs": st.integers(0, 20),
    "min_tokens": st.integers(0, 3),
    "max_tokens": st.integers(1, 4),
    "max_completion_tokens": st.integers(1, 4),
}
FLAGS = ("stream", "ignore_eos", "parallel_tool_calls", "logprobs", "store")


@st.composite
def _bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """Return a request whose fields are as they should be, or nearly; at times one is anything."""
    kind = ChatRequest if path == CHAT else CompletionRequest
    known = {field.name for field in msgspec.structs.fields(kind)}
    values = {**NEAR, **LIMITED, **dict.fromkeys(FLAGS, st.booleans())}
    names = st.sampled_from(sorted(known & set(values)))
    chosen = draw(st.lists(names, max_size=5, unique=True))
    body = {**BODIES[path], **{name: draw(values[name]) for name in chosen}}
    if draw(st.integers(0, 4)) == 0:
        body[draw(st.one_of(st.sampled_from(sorted(known)), TEXTS))] = draw(JSON)
    if not isinstance(body.get("max_tokens"), int):
        body["max_tokens"] = 2  # else an answer takes the context's length
    return body


@pytest.mark.parametrize("path", BODIES)
def test_no_body_is_an_error_of_the_server(caller: httpx.Client, path: str) -> None:
    """Whatever its fields hold it is answered, or refused with 4xx in OpenAI's shape."""

    @settings(
        max_examples=150,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(body=_bodies(path))
    def ask(body: dict[str, Any]) -> None:
        answer = caller.post(path, content=json.dumps(body).encode())
        if answer.status_code == 200:  # a stream's errors come in it
            assert '"type": "server_error"' not in answer.text, body
            return
        assert 400 <= answer.status_code < 500, (answer.text, body)
        check("ErrorResponse", answer.json())

    ask()


@given(data=st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_no_bytes_are_an_error_of_the_server(caller: httpx.Client, data: bytes) -> None:
    """What is no JSON is refused on every route that reads it."""
    for path in (CHAT, TEXT, "/tokenize", "/detokenize"):
        answer = caller.post(path, content=data)
        assert answer.status_code == 400, answer.text
        check("ErrorResponse", answer.json())
