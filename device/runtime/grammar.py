"""Grammars of answers: JSON of a schema, calls of tools; in llguidance's dialect of Lark.

Source: github.com/guidance-ai/llguidance, ``docs/syntax.md`` (``%json``, ``<[id]>``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from device.runtime.faults import GrammarError
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import ToolForm

ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
# A weak model may write white space for ever where a grammar lets it.
_JSON_OPTIONS: Final = {"whitespace_pattern": r"[ \n\r\t]{0,24}"}
_JOINS: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref"})
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_ALONE: Final = frozenset({"anyOf", "oneOf", "$ref"})
_WITHIN: Final = _JOINS | _LISTS | _MAPS | {"items", "additionalProperties"}
# What says nothing of an object's properties: beside a join it leaves the parts whole.
_APART: Final = frozenset(
    {"$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description"}
    | {"discriminator", "examples", "readOnly", "title", "type", "writeOnly", "x-guidance"}
)
# What rules properties beyond those that are named, or asks for more of them.
_OPEN: Final = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"}
)
_LEADING: Final = r"/\n{0,2}/"
_MARK: Final = re.compile(r"(<｜[^｜]+｜>|</?tool_call>)")


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

    Raises:
        GrammarError: It is nested too deeply.
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
        tokenizer: Says which marks are tokens of their own.
        leading: As of :func:`json_grammar`.
        schema: What an answer is that calls nothing, where it is bound.

    Raises:
        GrammarError: A schema is no object's, or is nested too deeply.
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
    """Return the schema of a tool's arguments, an object; a loose one is held to as far as it goes.

    Raises:
        GrammarError: It says that they are something else.
    """
    function = tool["function"]
    schema = function.get("parameters") or ANY_OBJECT
    kinds = schema.get("type", "object")
    if kinds != "object" and not (isinstance(kinds, list) and "object" in kinds):
        raise GrammarError(
            f"the parameters of {function['name']} have type {kinds!r:.40}, not object",
            "Arguments have names: give a schema of an object",
        )
    schema = {**schema, "type": "object"}
    if function.get("strict"):
        return schema
    return {**schema, "x-guidance": {**_JSON_OPTIONS, "lenient": True}}


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """Return a text as a grammar has it; marks that are tokens of their own stand by their ids.

    Special or not: llguidance takes neither for the letters it is written in, and a model that was
    taught the token does not spell it.
    """
    parts = []
    for part in filter(None, _MARK.split(text)):
        if tokenizer.is_added(part):
            parts.append(f"<[{tokenizer.token_id(part)}]>")
        else:
            parts.append(json.dumps(part, ensure_ascii=False))
    return " ".join(parts)


def _json(schema: Mapping[str, Any]) -> str:
    try:
        own = schema if _is_interwoven(schema) else closed(schema)
        return "%json " + json.dumps({"x-guidance": _JSON_OPTIONS, **own}, ensure_ascii=False)
    except RecursionError as error:
        raise GrammarError("the schema is nested too deeply", "Flatten it") from error


def closed(schema: Any) -> Any:
    """Return a schema whose objects have the properties they name and no others, unless it says so.

    All that fits it fits the schema given. Left open, a weak model goes on inventing properties.
    Objects put together of several schemas stay as they are: closing the parts contradicts. So do
    those that require a property which they do not name.
    """
    if not isinstance(schema, dict):
        return schema
    joined = set() if _stands_alone(schema) else _JOINS & set(schema)
    made = {key: _closed_under(key, value) for key, value in schema.items()}
    named = schema.get("properties")
    if isinstance(named, dict) and not _JOINS & set(schema) and not _OPEN & set(schema):
        required = schema.get("required", [])
        if isinstance(required, list) and all(name in named for name in required):
            made["additionalProperties"] = False
    return made | {key: schema[key] for key in joined}


def _closed_under(key: str, value: Any) -> Any:
    if key in _MAPS and isinstance(value, dict):
        return {name: closed(inner) for name, inner in value.items()}
    if key in _LISTS and isinstance(value, list):
        return [closed(inner) for inner in value]
    return closed(value) if key == "items" else value


def _stands_alone(schema: Mapping[str, Any]) -> bool:
    """Say whether an object that fits is what one schema says of it, not several together."""
    joins = _JOINS & set(schema)
    if joins == {"allOf"}:  # of one, as code generators write a reference beside a description
        alone = isinstance(schema["allOf"], list) and len(schema["allOf"]) == 1
    else:
        alone = len(joins) == 1 and joins <= _ALONE
    return not joins or (alone and set(schema) <= joins | _APART)


def _is_interwoven(schema: Any) -> bool:
    """Say whether anywhere an object is put together of schemas that stand elsewhere.

    What is referred to may serve alone in another place; closing it there would contradict here.
    """
    if isinstance(schema, list):
        return any(map(_is_interwoven, schema))
    if not isinstance(schema, dict):
        return False
    if not _stands_alone(schema) and '"$ref"' in json.dumps(
        {key: schema[key] for key in _JOINS & set(schema)}
    ):
        return True
    under = [
        value.values() if key in _MAPS and isinstance(value, dict) else [value]
        for key, value in schema.items()
        if key in _WITHIN
    ]
    return any(_is_interwoven(inner) for inners in under for inner in inners)
