"""Calls of tools in a model's text: how they are asked for, written, and found again.

Three forms are in use, each what the checkpoint's template writes: DeepSeek's of R1
(deepseek-ai/DeepSeek-R1, ``tokenizer_config.json``: ``<｜tool▁calls▁begin｜>``), its plainer one of
V3.1 (deepseek-ai/DeepSeek-V3.1, ``README.md``), and Qwen's (``<tool_call>``, after NousResearch's
Hermes function calling). A model whose template knows none is told of the last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from edgekit.text.reasoning import partial_match


class ToolCall(NamedTuple):
    """A call that a model wrote; ``arguments`` is a JSON object's text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How calls are written: ``opens``, then calls, ``closes``.

    Attributes:
        opens: Begins what has calls; empty where each call stands alone.
        before_name: Begins a call.
        after_name: Between a call's name and its arguments.
        ends: Ends a call.
        closes: Ends what has calls.
        call_opens: The first of ``before_name``, which every call begins with.
        call_ends: The last of ``ends``, likewise.
        between: Stands between two calls.
    """

    opens: str
    before_name: str
    after_name: str
    ends: str
    closes: str
    call_opens: str
    call_ends: str
    between: str = "\n"

    @property
    def trigger(self) -> str:
        """What tells that calls begin."""
        return self.opens or self.call_opens

    def write(self, call: ToolCall) -> str:
        """Return a call's text."""
        return f"{self.before_name}{call.name}{self.after_name}{call.arguments}{self.ends}"

    def write_all(self, calls: Sequence[ToolCall]) -> str:
        """Return the text of some calls."""
        return self.opens + self.between.join(map(self.write, calls)) + self.closes


DEEPSEEK: Final = ToolForm(
    opens="<｜tool▁calls▁begin｜>",
    before_name="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    after_name="\n```json\n",
    ends="\n```<｜tool▁call▁end｜>",
    closes="<｜tool▁calls▁end｜>",
    call_opens="<｜tool▁call▁begin｜>",
    call_ends="<｜tool▁call▁end｜>",
)
DEEPSEEK_PLAIN: Final = ToolForm(
    opens=DEEPSEEK.opens,
    before_name=DEEPSEEK.call_opens,
    after_name="<｜tool▁sep｜>",
    ends=DEEPSEEK.call_ends,
    closes=DEEPSEEK.closes,
    call_opens=DEEPSEEK.call_opens,
    call_ends=DEEPSEEK.call_ends,
    between="",
)
QWEN: Final = ToolForm(
    opens="",
    before_name='<tool_call>\n{"name": "',
    after_name='", "arguments": ',
    ends="}\n</tool_call>",
    closes="",
    call_opens="<tool_call>",
    call_ends="</tool_call>",
)
_DEEPSEEK_CALL: Final = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\n<]+?)\s*(?:<｜tool▁sep｜>|\n)\s*"
    r"(?:```(?:json)?\s*)?(?P<arguments>\{.*\})\s*(?:```)?\s*<｜tool▁call▁end｜>",
    re.DOTALL,
)


def form_of(template: str) -> ToolForm:
    """Return the form that a chat template writes calls in, as far as its source tells."""
    return DEEPSEEK if DEEPSEEK.opens in template else QWEN


def read_call(text: str, form: ToolForm) -> ToolCall | None:
    """Return the call that a text from a call's beginning to its end is; None if it is none."""
    if form.call_opens == DEEPSEEK.call_opens:
        found = _DEEPSEEK_CALL.fullmatch(text.strip())
        if found is None:
            return None
        name, arguments = found["name"].strip(), found["arguments"]
        return ToolCall(name, arguments) if isinstance(_parsed(arguments), dict) else None
    body = text.strip().removeprefix(QWEN.call_opens).removesuffix(QWEN.call_ends)
    value = _parsed(body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):  # some models write the text of the object
        arguments = _parsed(arguments)
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class ToolCallSplitter:
    """Takes calls out of streamed text; what is no call after all stays text.

    Args:
        form: What the model was told to write.
    """

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._held = ""
        self._inside = False  # of the calls' wrapper, where white space is nobody's text
        self._markers = [mark for mark in (form.opens, form.call_opens, form.closes) if mark]

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return text and calls that ``text`` settles; what may begin a call is held back."""
        self._held += text
        found: list[str | ToolCall] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[str | ToolCall]:
        """Return what is held back: an unfinished call is text after all."""
        left, self._held = self._held, ""
        return [left] if left else []

    def _step(self, found: list[str | ToolCall]) -> bool:
        marks = [(at, mark) for mark in self._markers if (at := self._held.find(mark)) >= 0]
        if not marks:
            keep = max(partial_match(self._held, mark) for mark in self._markers)
            self._pass(found, len(self._held) - keep)
            return False
        at, mark = min(marks)
        self._pass(found, at)
        if mark != self._form.call_opens:
            self._held = self._held[len(mark) :]
            self._inside = mark == self._form.opens
            return True
        end = self._held.find(self._form.call_ends)
        if end < 0:
            return False
        end += len(self._form.call_ends)
        whole, self._held = self._held[:end], self._held[end:]
        found.append(read_call(whole, self._form) or whole)
        self._inside = True
        return True

    def _pass(self, found: list[str | ToolCall], count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if self._inside and not text.strip():
            return
        if text:
            self._inside = False
            found.append(text)


def describe_tools(tools: Sequence[Mapping[str, Any]], form: ToolForm) -> str:
    """Return the words that tell a model of its tools, where its template has none."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    example = form.write_all([ToolCall("NAME", '{"ARGUMENT": "VALUE"}')])
    return (
        "You may call functions to answer. These are their signatures, a JSON object each:\n"
        f"{functions}\n\n"
        f"To call one or more, write exactly this and nothing else after it:\n{example}"
    )


def as_text(messages: Sequence[Mapping[str, Any]], form: ToolForm) -> list[dict[str, Any]]:
    """Return messages with calls and their results written out, for templates that know neither."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        made = dict(message)
        calls = made.pop("tool_calls", None)
        made.pop("tool_call_id", None)
        if calls:
            text = form.write_all([ToolCall(**_function(call)) for call in calls])
            made["content"] = (made.get("content") or "") + text
        if made["role"] == "tool":
            made = {
                "role": "user",
                "content": f"<tool_response>\n{made['content']}\n</tool_response>",
            }
        plain.append(made)
    return plain


def _function(call: Mapping[str, Any]) -> dict[str, str]:
    return {key: call["function"][key] for key in ("name", "arguments")}
