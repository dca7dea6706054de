"""Conversations with tools reach published chat templates as these read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from factories import EXAMPLE

from device.api.messages import Message, Tool, render, usable_tools
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.reasoning import prompt_opens_reasoning
from edgekit.text.tool_calls import DEEPSEEK, DEEPSEEK_PLAIN, QWEN, ToolForm, read_call

FOLDER = Path(__file__).parents[2] / "data" / "templates"
FORMS: dict[str, ToolForm] = {
    "deepseek_r1": DEEPSEEK,
    "deepseek_r1_0528": DEEPSEEK,
    "deepseek_r1_distill": DEEPSEEK,
    "deepseek_v31": DEEPSEEK_PLAIN,
    "qwen3": QWEN,
    "vllm_deepseek_r1_tools": DEEPSEEK,
}
TEMPLATES = pytest.mark.parametrize("name", FORMS)
WEATHER = {"name": "weather", "arguments": '{"city": "Köln \\"Mitte\\""}'}
CLOCK = {"name": "clock", "arguments": "{}"}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "clock")
]
ASKED = {"role": "user", "content": "What is the weather?"}
RESULT = {"role": "tool", "content": "rain <b>&", "tool_call_id": "call_1"}


def _calls(*functions: dict[str, str], content: str | None = None, **more: Any) -> dict[str, Any]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": function}
        for index, function in enumerate(functions)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [ASKED],
    "turns": [
        {"role": "system", "content": "Be brief."},
        ASKED,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRain."},
        {"role": "user", "content": "And now?"},
    ],
    "a call": [ASKED, _calls(WEATHER, content="I look."), RESULT],
    "two calls": [
        ASKED,
        _calls(WEATHER, CLOCK, content="I look.", reasoning_content="Both."),
        RESULT,
        RESULT,
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "And now?"},
    ],
    "calls upon results": [
        ASKED,
        _calls(WEATHER, content="I look."),
        RESULT,
        _calls(CLOCK, content="And when?"),
        RESULT,
    ],
}


def _template(name: str) -> ChatTemplate:
    tokens = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
    return ChatTemplate((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), tokens)


def _render(template: ChatTemplate, chat: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """Render as the server does, from a client's JSON."""
    messages = msgspec.convert(chat, list[Message])
    return render(template, messages, msgspec.convert(tools, list[Tool]), {})


def _with_data(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose calls have arguments as transformers documents them."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(arguments)}}
        for call in message["tool_calls"]
        for arguments in [call["function"]["arguments"]]
    ]
    return {**message, "tool_calls": calls}


@TEMPLATES
@pytest.mark.parametrize("chat", CHATS)
def test_they_write_what_transformers_has_them_write(name: str, chat: str) -> None:
    """The same prompt to the character; arguments are given to transformers as each wants them."""
    from transformers import AutoTokenizer

    template, messages = _template(name), CHATS[chat]
    tokens: dict[str, Any] = template.tokens
    if name in {"qwen3", "vllm_deepseek_r1_tools"}:
        messages = [_with_data(message) for message in messages]
    tools: list[Any] = TOOLS if "tools" in template.variables else []
    expected = AutoTokenizer.from_pretrained(str(EXAMPLE)).apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=template.source,
        tokenize=False,
        add_generation_prompt=True,
        **tokens,
    )
    assert _render(template, CHATS[chat], tools) == expected


@TEMPLATES
@pytest.mark.parametrize("content", [None, "", "I look."])
def test_calls_can_be_read_in_the_prompt(name: str, content: str | None) -> None:
    """Each once, in the template's form, with arguments as the client sent them; and the result."""
    template = _template(name)
    chat = [ASKED, _calls(WEATHER, CLOCK, content=content), RESULT]
    prompt, form = _render(template, chat, []), FORMS[name]
    found = []
    for part in prompt.split(form.call_opens)[1:]:
        call = read_call(form.call_opens + part.partition(form.call_ends)[0] + form.call_ends, form)
        found.append(call and {"name": call.name, "arguments": call.arguments})
    assert found == [WEATHER, CLOCK]
    assert prompt.count("rain <b>&") == 1
    assert prompt.count("I look.") == (content == "I look.")


@TEMPLATES
def test_the_form_is_the_template_s(name: str) -> None:
    """What answers are held to is what the model reads of its own calls."""
    template = _template(name)
    tools = usable_tools(msgspec.convert(TOOLS, list[Tool]), None, template, parallel=True)
    assert tools is not None
    assert tools.form is FORMS[name]
    prompt = _render(template, [ASKED], TOOLS)
    assert '"weather"' in prompt
    assert tools.form.trigger in prompt  # the template's own words, or ours


def test_where_the_reasoning_begins() -> None:
    """In the prompt, by the model, or nowhere, as the template has it."""
    opened = {name: prompt_opens_reasoning(_render(_template(name), [ASKED], [])) for name in FORMS}
    assert [name for name in FORMS if opened[name]] == ["deepseek_r1", "deepseek_r1_distill"]
    chat = msgspec.convert([ASKED], list[Message])
    for name, variable in (("deepseek_v31", "thinking"), ("qwen3", "enable_thinking")):
        prompts = [render(_template(name), chat, [], {variable: value}) for value in (True, False)]
        assert prompt_opens_reasoning(prompts[0]) is (name == "deepseek_v31")
        assert not prompt_opens_reasoning(prompts[1])


@TEMPLATES
def test_no_arguments_may_be_written_as_nothing(name: str) -> None:
    """Some clients send an empty text for a call without arguments."""
    template = _template(name)
    empty = [ASKED, _calls({"name": "clock", "arguments": ""}), RESULT]
    assert _render(template, empty, []) == _render(template, [ASKED, _calls(CLOCK), RESULT], [])


@TEMPLATES
@pytest.mark.parametrize(
    ("message", "said"),
    [({"reasoning_content": "Hm"}, ""), ({"refusal": "I may not."}, "I may not.")],
)
def test_an_answer_without_a_content_is_taken(
    name: str, message: dict[str, Any], said: str
) -> None:
    """Clients echo null for one that was cut in its reasoning, or refused."""
    template = _template(name)
    echoed = {"role": "assistant", "content": None, **message}
    written = {key: value for key, value in echoed.items() if key != "refusal"}
    again = {"role": "user", "content": "Again."}
    expected = _render(template, [ASKED, {**written, "content": said}, again], [])
    assert _render(template, [ASKED, echoed, again], []) == expected
