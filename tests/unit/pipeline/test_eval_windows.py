"""Rows of an evaluation become the text that the model would have seen and written."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.evaluate.exact_match import EvalRow
from edgekit.pipeline.evaluate import EvalRequest, _windows

ROWS = [EvalRow("2+2?", "two and two", "4"), EvalRow("2+2?", "", "4")]


def opens(messages: list[dict[str, str]]) -> str:
    return f"<U>{messages[0]['content']}<A><think>\n"


def leaves_open(messages: list[dict[str, str]]) -> str:
    return f"<U>{messages[0]['content']}<A>"


@pytest.mark.parametrize(
    ("render", "texts"),
    [
        (opens, ["<U>2+2?<A><think>\ntwo and two\n</think>\n\n4",
                 "<U>2+2?<A><think>\n\n</think>\n\n4"]),
        (leaves_open, ["<U>2+2?<A><think>\ntwo and two\n</think>\n\n4", "<U>2+2?<A>4"]),
    ],
)  # fmt: skip
def test_reasoning_is_opened_once(render: Callable[[Any], str], texts: list[str]) -> None:
    """The reasoning has one opening tag, the template's or the model's own."""
    encoder = SimpleNamespace(encode=lambda text: list(text.encode()))
    model: Any = SimpleNamespace(tokenizer=encoder, template=SimpleNamespace(render=render))
    request: Any = EvalRequest(reference=object())  # type: ignore[arg-type]
    windows = _windows(model, request, None, ROWS)
    assert [bytes(window.tolist()).decode() for window in windows] == texts
