"""Answers of a form: JSON of a schema, calls of tools; log probabilities; several at once."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serve_cases import NAME, SUM, post, served, settle

from device.api.service import Service

HOT = [{"role": "user", "content": "Triage: gpu memory is 97%"}]
TRIAGE = {
    "type": "object",
    "properties": {
        "metric": {"type": "string"},
        "value": {"type": "integer"},
        "alarm": {"type": "boolean"},
    },
    "required": ["metric", "value", "alarm"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bremen", "Kiel"]}, "days": {"enum": [1, 2]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[tuple[str, Service]]:
    with served(bundle) as found:
        yield found


@pytest.fixture
def client(server: tuple[str, Service]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as made:
        yield made
    settle(server[1])


def _ask(client: openai.OpenAI, **more: Any) -> Any:
    values: dict[str, Any] = {"model": NAME, "messages": SUM, "temperature": 0, **more}
    return client.chat.completions.create(**values)


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def test_a_schema_binds_the_answer_and_not_the_reasoning(client: openai.OpenAI) -> None:
    """The model reasons freely, then writes what the schema says: its own answer, here."""
    free = _ask(client, messages=HOT).choices[0].message
    bound = _ask(client, messages=HOT, response_format=_schema(TRIAGE)).choices[0].message
    assert bound.reasoning == free.reasoning
    assert "threshold" in bound.reasoning
    expected = {"metric": "gpu_memory_percent", "value": 97, "alarm": True}
    assert json.loads(bound.content) == json.loads(free.content) == expected


def test_a_schema_binds_what_the_model_would_not_say(client: openai.OpenAI) -> None:
    """A sum asked for as an object of one number; sampled hot, still of the schema."""
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 100, "maximum": 999}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    for temperature in (0, 1.5):
        done = _ask(
            client, response_format=_schema(schema), temperature=temperature, seed=3, max_tokens=300
        )
        if done.choices[0].finish_reason == "stop":
            assert 100 <= json.loads(done.choices[0].message.content)["sum"] <= 999
        assert temperature or done.choices[0].finish_reason == "stop"


def test_json_mode_streams_an_object(client: openai.OpenAI) -> None:
    """Any object; joined from the stream's pieces."""
    stream = _ask(client, messages=HOT, response_format={"type": "json_object"}, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert isinstance(json.loads(text), dict)


def test_a_tool_that_is_required_is_called(client: openai.OpenAI) -> None:
    """By a model that was never taught tools: the grammar gives name and arguments their form."""
    done = _ask(client, tools=[WEATHER, CLOCK], tool_choice="required", parallel_tool_calls=False)
    (call,) = done.choices[0].message.tool_calls
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.choices[0].message.content is None
    assert call.function.name in {"weather", "clock"}
    assert call.id.startswith("call_")
    named = {"type": "function", "function": {"name": "weather"}}
    stream = _ask(
        client, tools=[WEATHER, CLOCK], tool_choice=named, stream=True, parallel_tool_calls=False
    )
    calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [(call.index, call.function.name) for call in calls] == [(0, "weather")]
    arguments = json.loads(calls[0].function.arguments)
    assert arguments["city"] in {"Bremen", "Kiel"}
    assert arguments["days"] in {1, 2}


def test_tools_may_be_left_alone(client: openai.OpenAI) -> None:
    """With tool_choice none the prompt is as without tools; auto lets the model answer in text."""
    plain = _ask(client)
    none = _ask(client, tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    auto = _ask(client, tools=[WEATHER])
    assert auto.usage.prompt_tokens > plain.usage.prompt_tokens
    assert auto.choices[0].finish_reason in {"stop", "length"}
    assert auto.choices[0].message.tool_calls is None


def test_a_conversation_with_calls_goes_on(client: openai.OpenAI) -> None:
    """What the client echoes of an assistant's message is taken, and a result is read."""
    first = _ask(client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message.model_dump()
    result = {"role": "tool", "content": "9", "tool_call_id": message["tool_calls"][0]["id"]}
    again = _ask(client, messages=[*SUM, message, result], tools=[WEATHER], max_tokens=8)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens + 20
    read = {**message, "parsed": None}  # as the client's parse() leaves them
    read["tool_calls"][0]["function"]["parsed_arguments"] = {"city": "Kiel"}
    same = _ask(client, messages=[*SUM, read, result], tools=[WEATHER], max_tokens=8)
    assert same.usage.prompt_tokens == again.usage.prompt_tokens


def test_log_probabilities(client: openai.OpenAI) -> None:
    """Every generated token, likeliest first, bytes that join to the text; streamed the same."""
    done = _ask(client, logprobs=True, top_logprobs=3)
    content = done.choices[0].logprobs.content
    assert len(content) == done.usage.completion_tokens
    message = done.choices[0].message
    text = b"".join(bytes(token.bytes) for token in content).decode()
    assert text == f"{message.reasoning}</think>\n\n{message.content}"
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob <= 0  # greedy
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
    stream = _ask(client, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        token
        for chunk in stream
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in content]
    completion = client.completions.create(model=NAME, prompt="To be", temperature=0, logprobs=2)
    told = completion.choices[0].logprobs
    assert told is not None
    assert "".join(told.tokens or []) == completion.choices[0].text
    assert [len(top) for top in told.top_logprobs or []] == [2] * 16


def test_several_answers(client: openai.OpenAI) -> None:
    """One prompt, which counts once; each answer has its own draws, and seeds count up."""
    more: dict[str, Any] = {"temperature": 2, "top_p": 1, "seed": 5, "max_tokens": 12}
    done = client.completions.create(model=NAME, prompt="To be", n=3, **more)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert len({choice.text for choice in done.choices}) == 3
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (2, 36)
    joined = ["", "", ""]
    ends = []
    for chunk in _ask(client, n=3, stream=True, **more):
        (choice,) = chunk.choices
        joined[choice.index] += (choice.delta.model_extra or {}).get("reasoning", "")
        ends += [choice.index] if choice.finish_reason else []
    assert sorted(ends) == [0, 1, 2]
    assert all(joined)


def test_several_prompts(client: openai.OpenAI, server: tuple[str, Service]) -> None:
    """Texts or tokens; each has its answers, in order."""
    texts = ["To be, or not", "What is"]
    done = client.completions.create(model=NAME, prompt=texts, temperature=0, n=2)
    said = [choice.text for choice in done.choices]
    assert len(said) == 4
    assert said[0] == said[1] != said[2] == said[3]
    tokens = post(server, {"prompt": texts[0]}, "/tokenize").json()["tokens"]
    again = client.completions.create(model=NAME, prompt=tokens, temperature=0)
    assert again.choices[0].text == said[0]


def test_what_changes_nothing_is_taken(client: openai.OpenAI) -> None:
    """Clients write null for what they leave out, and defaults."""
    idle = dict.fromkeys(("audio", "prediction", "reasoning_effort", "web_search_options", "tools"))
    more = {**idle, "modalities": ["text"], "functions": [], "max_tokens": None, "store": False}
    assert _ask(client, extra_body=more).choices[0].message.content == "58 + 67 = 125"


def test_min_p_keeps_the_likely(client: openai.OpenAI) -> None:
    """At 1 only the best token is left, however hot."""
    cold = _ask(client).choices[0].message.content
    hot = _ask(client, temperature=2, top_p=1, extra_body={"min_p": 1}).choices[0].message.content
    assert hot == cold


@pytest.mark.parametrize(
    ("more", "said", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "no schema", "response_format"),
        ({"response_format": _schema({"type": "objct"})}, "Invalid type", "response_format"),
        ({"response_format": _schema({"not": {}})}, "Unimplemented keys", "response_format"),
        ({"tool_choice": "required"}, "there are none", "tools"),
        ({"tools": [WEATHER, WEATHER]}, "same name", "tools"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "x"}},
            },
            "no tool 'x'",
            "tool_choice",
        ),
        ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "reads no", "chat_template_kwargs"),
        ({"messages": [{"role": "user"}]}, "no content", "messages"),
        ({"messages": [{"role": "function", "content": ""}]}, "Invalid enum", "messages[0].role"),
    ],
)
def test_what_cannot_be_held_to_is_refused(
    server: tuple[str, Service], more: dict[str, Any], said: str, param: str
) -> None:
    """With the field that is wrong, before anything runs."""
    answer = post(server, {"model": NAME, "messages": SUM, **more})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
