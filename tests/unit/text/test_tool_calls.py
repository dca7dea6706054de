"""Calls are found whatever the pieces they come in, and nothing else is taken for one."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.text.tool_calls import (
    DEEPSEEK,
    QWEN,
    ToolCall,
    ToolCallSplitter,
    ToolForm,
    as_text,
    describe_tools,
    form_of,
    read_call,
)

CALLS = [ToolCall("weather", '{"city": "Bremen"}'), ToolCall("time", "{}")]
FORMS = pytest.mark.parametrize("form", [DEEPSEEK, QWEN], ids=["deepseek", "qwen"])


def _split(form: ToolForm, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    splitter = ToolCallSplitter(form)
    found = [item for piece in pieces for item in splitter.feed(piece)] + splitter.finish()
    calls = [item for item in found if isinstance(item, ToolCall)]
    return "".join(item for item in found if isinstance(item, str)), calls


@FORMS
@given(cuts=st.lists(st.integers(0, 300), max_size=12))
def test_calls_survive_any_cut(form: ToolForm, cuts: list[int]) -> None:
    """Text before them stays text, and the calls are those written."""
    text = "I look.\n" + form.write_all(CALLS)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert _split(form, pieces) == ("I look.\n", CALLS)


@FORMS
@given(text=st.text(alphabet="<｜tool_calbegin>/ \n{}", max_size=60))
def test_what_is_no_call_stays_text(form: ToolForm, text: str) -> None:
    """Not a character is lost of text without a call."""
    assert _split(form, list(text)) == (text, [])


@FORMS
def test_a_broken_call_is_text(form: ToolForm) -> None:
    """One that is no JSON, and one that was cut."""
    broken = form.write(ToolCall("weather", '{"city": '))
    assert _split(form, [broken]) == (broken, [])
    cut = form.write(CALLS[0])[:-3]
    assert _split(form, [cut]) == (cut, [])


def test_forms_that_models_vary() -> None:
    """DeepSeek's later form without "function"; Qwen's "parameters", and text for them."""
    later = "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    assert read_call(later, DEEPSEEK) == ToolCall("weather", "{}")
    for body in ({"name": "f", "parameters": {"a": 1}}, {"name": "f", "arguments": '{"a": 1}'}):
        text = f"<tool_call>{json.dumps(body)}</tool_call>"
        assert read_call(text, QWEN) == ToolCall("f", '{"a": 1}')
    assert read_call("<tool_call>[]</tool_call>", QWEN) is None


def test_the_template_says_which() -> None:
    """DeepSeek's marks, else Qwen's."""
    assert form_of("{{ '<｜tool▁calls▁begin｜>' }}") is DEEPSEEK
    assert form_of("{{ '<tool_call>' }}") is QWEN


@FORMS
def test_templates_without_tools_are_told_in_text(form: ToolForm) -> None:
    """The signature and the form are in the words; results come as the user's."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    assert form.trigger in describe_tools([tool], form)
    call: dict[str, Any] = {"function": {"name": "weather", "arguments": "{}"}, "id": "1"}
    plain = as_text(
        [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
        ],
        form,
    )
    assert _split(form, [plain[0]["content"]]) == ("", [ToolCall("weather", "{}")])
    assert plain[1] == {"role": "user", "content": "<tool_response>\nrain\n</tool_response>"}
