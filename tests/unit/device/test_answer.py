"""An answer's tokens become text, reasoning and calls, wherever their edges fall."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from factories import EXAMPLE

from device.api.replies import Reply
from device.runtime.answer import Answer, Prompt, Wishes
from edgekit.engine.sampler import SamplingParams
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import DEEPSEEK, DEEPSEEK_PLAIN, QWEN, ToolCall, ToolForm

CALLS = [ToolCall("weather", '{"city": "Köln </tool> 中"}'), ToolCall("clock", "{}")]
FORMS = pytest.mark.parametrize("form", [DEEPSEEK, DEEPSEEK_PLAIN, QWEN], ids=["r1", "v31", "qwen"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(EXAMPLE)


class Said:
    """An engine that says what it is told to: as the loop does it, a request's sinks are called."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens

    def submit(self, request: Any) -> Future[None]:
        """Take a request, and be done with it."""
        taken: Future[None] = Future()
        taken.set_result(None)
        for token in self.tokens:
            request.generated.append(token)
            if not request.on_token(request, token):
                break
        request.finish("stop")
        return taken


def _cut(tokenizer: Tokenizer, text: str, seed: int) -> list[int]:
    """Return tokens of a text that is cut at random places, inside of characters too."""
    draw = random.Random(seed)
    data, tokens = text.encode(), []
    while data:
        size = draw.randint(1, 6)
        part, data = data[:size], data[size:]
        tokens += _bytes_as_tokens(tokenizer, part)
    return tokens


def _bytes_as_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Return a token a byte, or the tokens of a text that bytes happen to be."""
    try:
        return tokenizer.encode(data.decode())
    except UnicodeDecodeError:
        return [_byte(tokenizer, byte) for byte in data]


def _byte(tokenizer: Tokenizer, byte: int) -> int:
    return next(
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.token_bytes(token) == bytes([byte])
    )


def _told(
    tokenizer: Tokenizer, tokens: Sequence[int], prompt: str = "", **more: Any
) -> dict[str, Any]:
    """Return the choice that a client gets."""

    async def ask() -> dict[str, Any]:
        params = SamplingParams(stop=more.pop("stop", ()))
        answer = Answer(Prompt(prompt, (1,)), params, tokenizer, frozenset(), wishes=Wishes(**more))
        engine: Any = Said(tokens)
        async for _ in answer.pieces(engine):
            pass
        whole: dict[str, Any] = Reply("chat", "m", tokenizer, [answer]).whole()["choices"][0]
        return whole

    return asyncio.run(ask())


@FORMS
@pytest.mark.parametrize("seed", range(8))
def test_calls_in_any_tokens(tokenizer: Tokenizer, form: ToolForm, seed: int) -> None:
    """Reasoning, a text and two calls, cut anywhere: each comes to its place, byte for byte."""
    text = "<think>\nHm, 中 and <tool_call>.\n</think>\n\nI look.\n\n" + form.write_all(CALLS)
    choice = _told(tokenizer, _cut(tokenizer, text, seed), calls=form)
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["reasoning"] == "\nHm, 中 and <tool_call>.\n"
    assert message["content"].rstrip() == "I look."
    found = [ToolCall(**call["function"]) for call in message["tool_calls"]]
    assert found == CALLS


@pytest.mark.parametrize(
    ("prompt", "text", "content"),
    [
        ("<think>\n", "</think>\n\nYes", "Yes"),
        ("<think>\n", "hm</think>\n\nYes", "Yes"),
        ("", "<think>hm</think>\n\nYes", "Yes"),
        ("", "\n\nYes", "\n\nYes"),
        ("<think>\n\n</think>\n\n", "Yes", "Yes"),
    ],
)
def test_blank_lines_behind_the_reasoning_are_not_the_answer_s(
    tokenizer: Tokenizer, prompt: str, text: str, content: str
) -> None:
    """However short the reasoning was; an answer without one stays as it is."""
    assert _told(tokenizer, tokenizer.encode(text), prompt)["message"]["content"] == content


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_string_over_the_tag(tokenizer: Tokenizer, seed: int) -> None:
    """One that begins in the reasoning and ends in the answer is found in any cut."""
    tokens = _cut(tokenizer, "I see: 中</think>\n\nYes, and no", seed)
    choice = _told(tokenizer, tokens, "<think>\n", stop=("中</think>\n\nYes",))
    assert choice["message"]["reasoning"] == "I see: "
    assert choice["message"]["content"] == ""
    choice = _told(tokenizer, tokens, "<think>\n", stop=(", and",))
    assert choice["message"]["content"] == "Yes"
