"""Every kind of answer against OpenAI's published schemas; every field that a request may have."""

from __future__ import annotations

import hashlib
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai_schema import check, check_request, fields
from serve_cases import NAME, SUM, post, raw, served

from device.api.service import Service
from device.api.settings import Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "serving.md"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": SUM},
    COMPLETION: {"prompt": "To be, or not"},
}
REQUESTS = {CHAT: "CreateChatCompletionRequest", COMPLETION: "CreateCompletionRequest"}
WHOLE = {CHAT: "CreateChatCompletionResponse", COMPLETION: "CreateCompletionResponse"}
CHUNK = {CHAT: "CreateChatCompletionStreamResponse", COMPLETION: "StreamedCompletionResponse"}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}
NAMED = {"type": "function", "function": {"name": "clock"}}
OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SCHEMA = {"name": "it", "strict": True, "schema": {**OBJECT, "additionalProperties": False}}

VALUES: dict[str, Any] = {
    "model": NAME,
    "messages": SUM,
    "prompt": ["To be", "or not"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["carry"],
    "response_format": {"type": "json_schema", "json_schema": SCHEMA},
    "tools": [CLOCK],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "logit_bias": {"5": -100},
    "temperature": 0.5,
    "top_p": 0.9,
    "metadata": {"who": "me"},
    "service_tier": "auto",
    "user": "me",
    "safety_identifier": "me",
    "prompt_cache_key": "me",
    "prompt_cache_retention": "24h",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "verbosity": "low",
    "reasoning_effort": "low",
    "web_search_options": {},
    "store": True,
    "prediction": {"type": "content", "content": "58"},
    "functions": [{"name": "clock"}],
    "function_call": "auto",
    "suffix": "the end",
    "echo": True,
    "best_of": 2,
}
"""A value of each field that asks for something; those of numbers are 1."""
NEWER = {"moderation": {"model": "x"}, "prompt_cache_options": {"mode": "explicit"}}
"""Fields that the installed client knows and the schemas of ``tests/data`` do not yet."""
NEEDS: dict[str, dict[str, Any]] = {
    "top_logprobs": {"logprobs": True},
    "stream_options": {"stream": True},
    "parallel_tool_calls": {"tools": [CLOCK]},
}
"""What has to stand beside a field."""


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


def chunks(answer: httpx.Response) -> list[Any]:
    """Return a stream's events; the last says that it is done."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events if event]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {}),
        (CHAT, {"max_completion_tokens": 3}),
        (CHAT, {"n": 2, "temperature": 1, "seed": 3}),
        (CHAT, {"logprobs": True, "top_logprobs": 3}),
        (CHAT, {"stop": ["carry"]}),
        (CHAT, {"response_format": {"type": "json_object"}, "max_tokens": 60}),
        (CHAT, {"response_format": VALUES["response_format"]}),
        (CHAT, {"tools": [CLOCK], "tool_choice": "required"}),
        (CHAT, {"tools": [CLOCK], "tool_choice": NAMED}),
        (COMPLETION, {}),
        (COMPLETION, {"n": 2, "temperature": 1}),
        (COMPLETION, {"prompt": ["To be", "or not"], "max_tokens": 4}),
        (COMPLETION, {"logprobs": 2}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.rsplit("/", 1)[1],
)  # fmt: skip
def test_answers_are_what_the_schemas_say(
    server: tuple[str, Service], path: str, more: dict[str, Any]
) -> None:
    """Whole and every chunk of a stream, with usage and without, and no field beside them."""
    body = {"model": NAME, "temperature": 0, **BODIES[path], **more}
    check_request(REQUESTS[path], body)
    whole = post(server, body, path).json()
    check(WHOLE[path], whole)
    for options in (None, {"include_usage": True}):
        streamed = {**body, "stream": True, "stream_options": options}
        check_request(REQUESTS[path], streamed)
        found = chunks(post(server, streamed, path))
        for chunk in found:
            check(CHUNK[path], chunk)
        told = [chunk["usage"] for chunk in found if chunk.get("usage")]
        assert len(told) == (options is not None)
        assert {chunk["id"] for chunk in found} == {found[0]["id"]}
    for usage in (whole["usage"], *told):
        check("CompletionUsage", usage)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_models_are_what_the_schema_says(server: tuple[str, Service]) -> None:
    """The list, and its items, which are found by name, too."""
    listed = httpx.get(f"{server[0]}/v1/models").json()
    check("ListModelsResponse", listed)
    assert httpx.get(f"{server[0]}/v1/models/{NAME}").json() == listed["data"][0]
    other = httpx.get(f"{server[0]}/v1/models/deepseek/r1")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    check("ErrorResponse", other.json())


def test_errors_are_what_the_schema_says(bundle: Path) -> None:
    """Of each status: what the server makes of bad requests, and of its own limits."""
    body = {"model": NAME, "messages": SUM}
    keys = {hashlib.sha256(b"secret").hexdigest(): "lab"}
    asked = [b"{", {}, {**body, "model": "x"}, {**body, "foo": 1}, {**body, "user": "x" * 2000}]
    found: list[httpx.Response] = []
    with served(bundle, Settings(body_limit_bytes=1000), slots=1) as server:
        found += [post(server, one) for one in asked]
        found += [httpx.get(server[0] + path) for path in (CHAT, "/v1/nothing")]
        head, _, text = raw(server[0], b"\0\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        check("ErrorResponse", json.loads(text))
    with served(bundle, Settings(timeout_s=0.001), slots=1) as server:
        found.append(post(server, body))
    with served(bundle, Settings(keys=keys), slots=1) as server:
        found.append(post(server, body))
    statuses = [answer.status_code for answer in found]
    assert statuses == [400, 400, 404, 400, 413, 405, 404, 504, 401]
    for answer in found:
        check("ErrorResponse", answer.json())


def documented() -> dict[tuple[str, str], str]:
    """Return what the documentation says becomes of a field, by route and field."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## OpenAI's fields")[2]
    rows = re.findall(r"^\| (served|idle|refused) \| `(\S+)` \| (.+?) \|$", text, re.MULTILINE)
    return {
        (path, field): state
        for state, path, names in rows
        for field in re.findall(r"`(\w+)`", names)
    }


def known() -> list[tuple[str, str]]:
    """Return all fields, of the published schemas and of the installed client."""
    params = {
        CHAT: chat_params.CompletionCreateParamsStreaming,
        COMPLETION: completion_params.CompletionCreateParamsStreaming,
    }
    return [
        (path, name)
        for path, schema in REQUESTS.items()
        for name in sorted(fields(schema) | set(typing.get_type_hints(params[path])))
    ]


def test_the_documentation_names_every_field() -> None:
    """Those of the schemas and of the client, and none that neither has."""
    assert sorted(documented()) == sorted(known())


@pytest.mark.parametrize(("path", "field"), known())
def test_fields_are_served_or_refused_as_documented(
    server: tuple[str, Service], path: str, field: str
) -> None:
    """Served and idle ones are taken, refused ones named; nothing is dropped in silence."""
    value = NEWER.get(field, VALUES.get(field, 1))
    if (path, field) == (CHAT, "logprobs"):
        value = True
    body = {"model": NAME, "max_tokens": 2, **BODIES[path], field: value, **NEEDS.get(field, {})}
    if field not in NEWER:
        check_request(REQUESTS[path], body)
    answer = post(server, body, path)
    if documented()[path, field] != "refused":
        assert answer.status_code == 200, answer.text
        return
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


def test_the_check_can_fail() -> None:
    """A field too many, one too few, a type that is another."""
    model = {"id": "a", "object": "model", "created": 1, "owned_by": "b"}
    check("Model", model)
    for bad in ({**model, "more": 1}, {**model, "created": "1"}, {"id": "a"}):
        with pytest.raises(jsonschema.ValidationError):
            check("Model", bad)
