"""How a chat template wants calls of tools to be handed over, found by rendering a probe.

Templates of one family differ, and say so nowhere. DeepSeek's join the arguments as text, others
write what they are given as JSON; some want None for the content of a message that is calls alone,
some fail on it; some leave the calls out beside a text. Each way is tried on a short conversation,
and the first in which call and result can be read is taken. A template that shows them in none is
told of them in words (:func:`edgekit.text.tool_calls.as_text`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import EngineError
from edgekit.text.tool_calls import DEEPSEEK_PLAIN, ToolForm, form_of

Render = Callable[[Sequence[Mapping[str, Any]]], str]

_NAME: Final = "probed_function"
_KEY, _VALUE, _RESULT, _SAID = "probed_key", "probed_value", "probed_result", "probed_text"
_ARGUMENTS: Final = re.compile(rf'"{_KEY}"\s*:\s*"{_VALUE}"')


@dataclass(frozen=True, slots=True)
class CallManner:
    """How a template takes the calls of an assistant's message.

    Attributes:
        form: How it writes them.
        takes_text: Whether arguments are handed over as JSON's text; else as data.
        empty: The content of a message that is calls alone.
        keeps_content: Whether it writes a text that stands beside calls.
    """

    form: ToolForm
    takes_text: bool
    empty: str | None
    keeps_content: bool

    def hand_over(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return an assistant's message with calls as the template reads it.

        Args:
            message: With ``tool_calls`` whose arguments are JSON's text.

        Raises:
            EngineError: The arguments are no JSON.
        """
        content = message.get("content")
        if not content or not self.keeps_content:
            content = self.empty
        calls = [
            {**call, "function": self._function(call["function"])} for call in message["tool_calls"]
        ]
        return {**message, "content": content, "tool_calls": calls}

    def _function(self, function: Mapping[str, Any]) -> dict[str, Any]:
        try:
            value = json.loads(function["arguments"])
        except (ValueError, RecursionError) as error:
            raise EngineError(
                f"The arguments of a call of {function['name']} are not JSON: {error}",
                "Send back the call as it was answered",
            ) from error
        return {**function, "arguments": function["arguments"] if self.takes_text else value}


def find_manner(render: Render, source: str) -> CallManner | None:
    """Return how a template takes calls; None if it shows them in no way.

    Args:
        render: Renders a conversation with it.
        source: The template, where the form of calls does not show in what it renders.
    """
    for empty in (None, ""):
        for takes_text in (False, True):
            shown = _probe(render, empty, takes_text=takes_text)
            if shown is None:
                continue
            beside = _probe(render, _SAID, takes_text=takes_text) or ""
            return CallManner(_form(shown, source), takes_text, empty, _SAID in beside)
    return None


def _probe(render: Render, content: str | None, *, takes_text: bool) -> str | None:
    """Return what a call and its result are rendered to; None where they cannot be read."""
    arguments: Any = {_KEY: _VALUE}
    function = {"name": _NAME, "arguments": json.dumps(arguments) if takes_text else arguments}
    call = {"id": "probed000", "type": "function", "function": function}
    try:
        shown = render(
            [
                {"role": "user", "content": "probe"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "content": _RESULT, "tool_call_id": call["id"]},
            ]
        )
    except EngineError:  # it fails on what it was handed: another way may do
        return None
    return shown if _NAME in shown and _ARGUMENTS.search(shown) and _RESULT in shown else None


def _form(shown: str, source: str) -> ToolForm:
    plain = f"{DEEPSEEK_PLAIN.before_name}{_NAME}{DEEPSEEK_PLAIN.after_name}"
    return DEEPSEEK_PLAIN if plain in shown else form_of(source)
