"""The sandbox a chat template runs in: jinja2's immutable one, its settings those of transformers.

What a template can do with the memory and time it is given is bounded here, by the checks of
:mod:`edgekit.text.template_limits`. Imports jinja2, an extra: import this module where it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from edgekit.text.template_limits import (
    check_call,
    check_operator,
    check_sum,
    limited_range,
    work,
)


class Sandbox(ImmutableSandboxedEnvironment):
    """Compiles templates that count their steps and check lengths before they make text."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse products and sums that would fill the memory before output is counted."""
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Refuse string methods that would pad or repeat without end."""
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        check_call(name, text, arguments, named)
        return super().call(context, function, *arguments, **named)

    def tick(self) -> str:
        """Count one step; written into every loop and macro."""
        work.add(1)
        return ""

    def concatenate(self, *values: Any) -> str:
        """Do what ``~`` does, within the length of a prompt."""
        texts = [str(value) for value in values]
        check_sum("".join(texts[:-1]), texts[-1])
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        """Parse a template, and write the counting of steps into it."""
        tree = super()._parse(source, name, filename)
        counted: Any = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for node in counted:
            call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(call).set_lineno(node.lineno))
        return _Concatenation().visit(tree).set_environment(self)


class _Concatenation(NodeTransformer):
    def visit_Concat(self, node: Any) -> Any:  # noqa: N802 - jinja2's own protocol
        """Replace ``a ~ b`` by a call that checks the length."""
        self.generic_visit(node)
        function = nodes.EnvironmentAttribute("concatenate")
        return nodes.Call(function, node.nodes, [], None, None).set_lineno(node.lineno)


class _GenerationTag(Extension):
    """``{% generation %}`` marks assistant text for training masks; here it only renders."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own protocol

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


@lru_cache(maxsize=1)
def sandbox() -> Sandbox:
    """Return the sandbox, set as transformers sets it (``utils/chat_template_utils.py``)."""
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_GenerationTag, loopcontrols],
    )
    made.filters["tojson"] = _tojson
    for name in ("center", "format", "indent", "replace"):
        made.filters[name] = _limited(name, made.filters[name])
    made.globals["range"] = limited_range
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter of jinja2's that checks first how long its result would be."""

    @wraps(function)  # with the mark that says whether it takes the evaluation context
    def checked(*arguments: Any, **named: Any) -> Any:
        # ``replace`` gets the evaluation context first; none of the others' texts can be one.
        given = arguments[1:] if name == "replace" else arguments
        check_call(name, given[0], given[1:], named)
        return function(*arguments, **named)

    return checked


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the signature templates call
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """Serialize without jinja2's HTML escapes, as transformers does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
