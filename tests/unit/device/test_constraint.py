"""A grammar begins where the answer does, and holds every token from there on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from factories import EXAMPLE

from device.runtime.constraint import Constraint, Grammars
from device.runtime.faults import GrammarError
from device.runtime.grammar import ANY_OBJECT, Tools, calls_grammar, closed, json_grammar
from edgekit.errors import EngineError
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import DEEPSEEK, QWEN, ToolCall, ToolForm

V = 4096
FORMS = pytest.mark.parametrize("form", [DEEPSEEK, QWEN], ids=["deepseek", "qwen"])
TOOLS: tuple[dict[str, Any], ...] = (
    {"function": {"name": "weather", "parameters": {"type": "object"}}},
    {"function": {"name": "clock"}},
)
CALLS = [ToolCall("weather", '{"city": "Kiel"}'), ToolCall("clock", "{}")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(Path(EXAMPLE))


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, V, tokenizer.eos_token_ids)


def _allowed(constraint: Constraint) -> set[int]:
    return set(np.flatnonzero(np.isfinite(constraint.allow(np.zeros(V, np.float32)))))


def _is_active(constraint: Constraint) -> bool:
    return constraint.is_active  # a call: a checker takes attributes for constant


def _follow(constraint: Constraint, tokens: Sequence[int]) -> None:
    """Feed tokens, each of which must be allowed where the grammar is at work."""
    for token in tokens:
        assert not constraint.is_active or token in _allowed(constraint)
        constraint.accept(token)


def test_the_reasoning_is_free_and_the_answer_is_not(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """Behind ``</think>``, line breaks and JSON; at its end, the end tokens alone."""
    bound = grammars.constrain(json_grammar(ANY_OBJECT, leading=True), in_reasoning=True)
    _follow(bound, tokenizer.encode("8 + 7, {well}"))
    assert not _is_active(bound)
    _follow(bound, tokenizer.encode("</think>"))
    assert _is_active(bound)
    _follow(bound, tokenizer.encode('\n\n{"a": [1, "x"]}'))
    assert _allowed(bound) == set(tokenizer.eos_token_ids)


def test_a_model_may_begin_to_reason_by_itself(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """``<think>`` is allowed first and only there; then the answer is bound."""
    (think,) = tokenizer.encode("<think>")
    bound = grammars.constrain(json_grammar(ANY_OBJECT, leading=True))
    assert think in _allowed(bound)
    _follow(bound, tokenizer.encode("<think>hm</think>"))
    assert _is_active(bound)
    assert think not in _allowed(bound)
    assert set(tokenizer.encode("x")).isdisjoint(_allowed(bound))


@FORMS
def test_calls_that_must_be(grammars: Grammars, tokenizer: Tokenizer, form: ToolForm) -> None:
    """One, or some, and no other text."""
    for parallel in (True, False):
        tools = Tools(TOOLS, form, is_required=True, is_parallel=parallel)
        bound = grammars.constrain(calls_grammar(tools, tokenizer, leading=False))
        calls = CALLS if parallel else CALLS[:1]
        _follow(bound, tokenizer.encode(form.write_all(calls)))
        assert set(tokenizer.eos_token_ids) <= _allowed(bound)
    with pytest.raises(EngineError, match="does not follow"):
        bound.accept(tokenizer.encode("x")[0])


@FORMS
def test_calls_that_may_be(grammars: Grammars, tokenizer: Tokenizer, form: ToolForm) -> None:
    """Text is free until a call is opened; the call is bound to a tool that there is."""
    tools = Tools(TOOLS, form)
    grammar = calls_grammar(tools, tokenizer, leading=False)
    bound = grammars.constrain(grammar, trigger=form.trigger)
    _follow(bound, tokenizer.encode("I look. "))
    assert not _is_active(bound)
    whole = form.write_all(CALLS)
    assert whole.startswith(form.trigger)
    _follow(bound, tokenizer.encode(form.trigger))
    assert _is_active(bound)
    _follow(bound, tokenizer.encode(whole[len(form.trigger) :]))


@FORMS
def test_calls_or_an_object(grammars: Grammars, tokenizer: Tokenizer, form: ToolForm) -> None:
    """Where the answer is bound too, it is one or the other, from its first token on."""
    grammar = calls_grammar(Tools(TOOLS, form), tokenizer, leading=True, schema=ANY_OBJECT)
    for text in ('{"a": 1}', "\n\n" + form.write_all(CALLS)):
        bound = grammars.constrain(grammar)
        _follow(bound, tokenizer.encode(text))
        assert set(tokenizer.eos_token_ids) <= _allowed(bound)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kinds", [None, ["object", "null"]])
def test_arguments_are_an_object(
    grammars: Grammars,
    tokenizer: Tokenizer,
    kinds: list[str] | None,
    strict: bool,  # noqa: FBT001
) -> None:
    """Whether the schema says so, leaves it open or allows for more: a call names its arguments."""
    schema: dict[str, Any] = {**NAMED, "type": kinds}
    if kinds is None:
        del schema["type"]
    tool = {"function": {"name": "f", "parameters": schema, "strict": strict}}
    grammar = calls_grammar(Tools((tool,), QWEN, is_required=True), tokenizer, leading=False)
    bound = grammars.constrain(grammar)
    _follow(bound, tokenizer.encode(QWEN.before_name + "f" + QWEN.after_name))
    begun = {tokenizer.decode([token]).strip() for token in _allowed(bound)}
    assert {text[0] for text in begun if text and text != "<think>"} == {"{"}


def test_parameters_that_are_no_object(tokenizer: Tokenizer) -> None:
    """A list of them could not be called with: refused by the function's name."""
    tool = {"function": {"name": "f", "parameters": {"type": "array"}}}
    with pytest.raises(GrammarError, match="parameters of f have type 'array'"):
        calls_grammar(Tools((tool,), QWEN), tokenizer, leading=False)


def test_grammars_are_kept_and_apart(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Two answers of one schema do not share their state."""
    grammar = json_grammar(ANY_OBJECT, leading=False)
    first, second = grammars.constrain(grammar), grammars.constrain(grammar)
    _follow(first, tokenizer.encode('{"a": 1}'))
    assert _allowed(first) != _allowed(second)


def test_white_space_ends(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A weak model cannot write line breaks for ever."""
    bound = grammars.constrain(json_grammar(ANY_OBJECT, leading=False))
    _follow(bound, tokenizer.encode("{"))
    (newline,) = tokenizer.encode("\n")
    for _ in range(24):
        bound.accept(newline)
    assert newline not in _allowed(bound)


def test_objects_have_what_they_name_and_no_more(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """Unless the schema says otherwise, at any depth; joined ones are left as they are."""
    inner = {"type": "object", "properties": {"properties": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": inner}}}
    bound = grammars.constrain(json_grammar(schema, leading=False))
    _follow(bound, tokenizer.encode('{"list": [{"properties": 1}]'))
    assert set(tokenizer.encode(",")).isdisjoint(_allowed(bound))
    named: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert closed({**named, "additionalProperties": True})["additionalProperties"] is True
    for key in ("allOf", "anyOf"):
        joined = {**named, key: [{"properties": {"b": {"type": "integer"}}}]}
        assert closed(joined) == joined
    assert closed({"anyOf": [named]})["anyOf"][0]["additionalProperties"] is False
    assert closed({"enum": [named], "default": named}) == {"enum": [named], "default": named}


INTEGER: dict[str, Any] = {"type": "integer"}
NAMED = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]}
WITH_B = {"properties": {"b": INTEGER}, "required": ["b"]}
TWO = '{"a": 1, "b": 2}'
OTHER = '{"b": 2, "a": 1}'  # what stands first in the schema comes first
TOGETHER: dict[str, tuple[dict[str, Any], str]] = {
    "reference and own": ({"$ref": "#/$defs/it", "$defs": {"it": NAMED}, **WITH_B}, TWO),
    "reference in anyOf": (
        {**WITH_B, "anyOf": [{"$ref": "#/$defs/it"}], "$defs": {"it": NAMED}},
        OTHER,
    ),
    "reference in allOf": (
        {"allOf": [{"$ref": "#/$defs/it"}, WITH_B], "$defs": {"it": NAMED}},
        TWO,
    ),
    "own in anyOf": ({**WITH_B, "anyOf": [NAMED]}, TWO),
    "required, not named": ({**NAMED, "required": ["a", "b"]}, TWO),
    "more than are named": ({**NAMED, "minProperties": 2}, TWO),
    "inside": (
        {
            "type": "array",
            "items": {"$ref": "#/$defs/it", **WITH_B},
            "$defs": {"it": NAMED},
        },
        f"[{TWO}]",
    ),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_closing_contradicts_no_schema(grammars: Grammars, tokenizer: Tokenizer, name: str) -> None:
    """What an object is by several schemas together, or requires and does not name, can be said."""
    schema, text = TOGETHER[name]
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    bound = grammars.constrain(json_grammar(schema, leading=False))
    _follow(bound, tokenizer.encode(text))
    assert set(tokenizer.eos_token_ids) <= _allowed(bound)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/it", "description": "as code generators write it"},
        {"allOf": [{"$ref": "#/$defs/it"}], "title": "likewise"},
        {"anyOf": [{"$ref": "#/$defs/it"}, {"type": "null"}], "default": None},
        {"type": "object", "oneOf": [{"$ref": "#/$defs/it"}]},
    ],
)
def test_a_reference_alone_is_closed(
    grammars: Grammars, tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    """Words beside it change nothing of what an object has."""
    whole = {"type": "object", "properties": {"v": schema}, "$defs": {"it": NAMED}}
    bound = grammars.constrain(json_grammar(whole, leading=False))
    _follow(bound, tokenizer.encode('{"v": {"a": 1'))
    assert set(tokenizer.encode(",")).isdisjoint(_allowed(bound))


@pytest.mark.parametrize("depth", [150, 400])
def test_a_schema_that_is_nested_too_deeply(grammars: Grammars, depth: int) -> None:
    """Refused, whoever notices first: not an error of the server."""
    schema: dict[str, Any] = INTEGER
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(GrammarError, match=r"nested too deeply|recursion limit"):
        grammars.constrain(json_grammar(schema, leading=False))


def test_what_is_no_schema(grammars: Grammars) -> None:
    """Refused with what llguidance says of it."""
    with pytest.raises(GrammarError, match="Invalid type: objct"):
        grammars.constrain(json_grammar({"type": "objct"}, leading=False))


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}}],
)
def test_what_nothing_fits(grammars: Grammars, schema: dict[str, Any]) -> None:
    """Refused before anything runs: no token could begin it."""
    with pytest.raises(GrammarError, match=r"nothing fits|circular"):
        grammars.constrain(json_grammar(schema, leading=False))


def test_what_nothing_fits_further_in(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """It is the schema's fault once the answer comes there, not the server's."""
    itself = {"a": {"$ref": "#/$defs/a"}}
    schema = {"type": "object", "properties": itself, "required": ["a"], "$defs": itself}
    bound = grammars.constrain(json_grammar(schema, leading=False))
    _follow(bound, tokenizer.encode('{"a":'))
    with pytest.raises(GrammarError, match="cannot go on"):
        bound.allow(np.zeros(V, np.float32))


def test_white_space_of_the_tag_is_no_answer(grammars: Grammars, tokenizer: Tokenizer) -> None:
    """A vocabulary may write the end of the tag and line breaks in one token."""
    bound = grammars.constrain(json_grammar(ANY_OBJECT, leading=True), in_reasoning=True)
    bound._decoder = Pieces(["hm</thi", "nk>\n\n\n\n"])  # type: ignore[assignment]  # what it needs
    bound.accept(0)
    assert (_is_active(bound), bound.is_due) == (False, True)
    bound.accept(0)
    assert _is_active(bound)
    assert not bound.is_due
    _follow(bound, tokenizer.encode('{"a": 1}'))


class Pieces:
    """A decoder of a vocabulary that the test makes up."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = iter(pieces)

    def feed(self, token: int) -> str:
        del token
        return next(self._pieces)
