"""Grammars of answers: JSON of a schema, calls of tools; in llguidance's dialect of Lark.

Source: github.com/guidance-ai/llguidance, ``docs/syntax.md`` (``%json``, ``<[id]>``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import ToolForm

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
# A weak model may write white space for ever where a grammar lets it.
_JSON_OPTIONS: Final = {"whitespace_pattern": r"[ \n\r\t]{0,24}"}
_JOINS: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref"})
_OPEN: Final = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})
_LEADING: Final = r"/\n{0,2}/"
_MARK: Final = re.compile(r"(<｜[^｜]+｜>)")


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools that an answer may call.

    Attributes:
        all: OpenAI's: ``{"function": {"name": ..., "parameters": schema, "strict": ...}}``.
        form: How the model writes calls.
        is_required: Whether the answer is calls and nothing else.
        is_parallel: Whether it may have more than one.
    """

    all: tuple[Mapping[str, Any], ...]
    form: ToolForm
    is_required: bool = False
    is_parallel: bool = True


def json_grammar(schema: Mapping[str, Any], *, leading: bool) -> str:
    """Return the grammar of a JSON value.

    Args:
        schema: JSON Schema; ``ANY_OBJECT`` is OpenAI's JSON mode.
        leading: Allow line breaks before it, as reasoning models write after ``</think>``.
    """
    return f"start: {_LEADING if leading else ''} value\nvalue: {_json(schema)}"


def calls_grammar(
    tools: Tools, tokenizer: Tokenizer, *, leading: bool, schema: Mapping[str, Any] | None = None
) -> str:
    """Return the grammar of calls.

    Tools that need not be called have one that begins behind ``form.trigger``, except where what
    is no call is bound, too.

    Args:
        tools: What may be called.
        tokenizer: Says which marks are special tokens.
        leading: As of :func:`json_grammar`.
        schema: What an answer is that calls nothing, where it is bound.
    """
    form, triggered = tools.form, is_triggered(tools, schema)
    rules = [f"args_{index}: {_json(_parameters(tool))}" for index, tool in enumerate(tools.all)]
    # A trigger that begins a call has been said: the first call goes on behind it.
    begun = form.call_opens if triggered and not form.opens else ""
    call = _any_call(tools, tokenizer)
    parts = [
        "" if triggered else _literal(form.opens, tokenizer),
        _any_call(tools, tokenizer, begun) if begun else call,
        rf"(/\n?/ {call})*" if tools.is_parallel else "",
        _literal(form.closes, tokenizer),
    ]
    calls = " ".join(filter(None, parts))
    if schema is not None and not tools.is_required:
        calls = f"({calls} | value)"
        rules.append(f"value: {_json(schema)}")
    start = f"{_LEADING} {calls}" if leading and not triggered else calls
    return "\n".join([f"start: {start}", *rules])


def is_triggered(tools: Tools, schema: Mapping[str, Any] | None = None) -> bool:
    """Say whether the grammar of calls waits for their beginning."""
    return not tools.is_required and schema is None


def _any_call(tools: Tools, tokenizer: Tokenizer, begun: str = "") -> str:
    """Return the rule of a call of any of the tools, whose beginning may have been said."""
    form = tools.form
    ends = _literal(form.ends, tokenizer)
    calls = []
    for index, tool in enumerate(tools.all):
        head = form.before_name + tool["function"]["name"] + form.after_name
        calls.append(f"{_literal(head.removeprefix(begun), tokenizer)} args_{index} {ends}")
    return f"({' | '.join(calls)})"


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments; a loose one is held to as far as it goes."""
    function = tool["function"]
    schema = function.get("parameters") or ANY_OBJECT
    if function.get("strict"):
        return schema
    return {**schema, "x-guidance": {**_JSON_OPTIONS, "lenient": True}}


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Return a text as a grammar has it; marks that are special tokens stand by their ids."""
    parts = []
    for part in filter(None, _MARK.split(text)):
        if tokenizer.is_special(part):
            parts.append(f"<[{tokenizer.token_id(part)}]>")
        else:
            parts.append(json.dumps(part, ensure_ascii=False))
    return " ".join(parts)


def _json(schema: Mapping[str, Any]) -> str:
    # What allOf joins, by reference perhaps, must not be closed part by part.
    own = schema if '"allOf"' in json.dumps(schema) else closed(schema)
    return "%json " + json.dumps({"x-guidance": _JSON_OPTIONS, **own}, ensure_ascii=False)


def closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties they name and no others, unless it says so.

    All that fits it fits the schema given. Left open, a weak model goes on inventing properties.
    Objects put together of several schemas stay as they are: closing the parts contradicts.
    """
    if not isinstance(schema, dict):
        return schema
    joined = _JOINS & set(schema)
    made = {key: _closed_under(key, value) for key, value in schema.items()}
    if "properties" in schema and not joined and not _OPEN & set(schema):
        made["additionalProperties"] = False
    if "properties" in schema:
        made |= {key: schema[key] for key in joined}
    return made


def _closed_under(key: str, value: Any) -> Any:
    if key in {"properties", "$defs", "definitions"} and isinstance(value, dict):
        return {name: closed(inner) for name, inner in value.items()}
    if key in {"anyOf", "oneOf", "prefixItems"} and isinstance(value, list):
        return [closed(inner) for inner in value]
    return closed(value) if key == "items" else value
