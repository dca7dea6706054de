"""Long work leaves the event loop to others; short work does not pay for a thread."""

from __future__ import annotations

import asyncio
import threading

import pytest
from factories import EXAMPLE

from device.api.aside import LONG_BYTES, aside
from device.api.replies import Reply
from device.runtime.answer import Answer, Prompt, Wishes
from edgekit.engine.sampler import SamplingParams
from edgekit.text.tokenizer import Tokenizer


@pytest.mark.parametrize(("size", "same"), [(10, True), (LONG_BYTES, False)])
def test_over_much_work_a_thread_is_taken(size: int, same: bool) -> None:  # noqa: FBT001
    """And what it returns or raises comes back."""

    async def ask() -> bool:
        with pytest.raises(ZeroDivisionError):
            await aside(size, lambda: 1 // 0)
        return await aside(size, threading.get_ident) == threading.get_ident()

    assert asyncio.run(ask()) is same


def test_tokens_that_are_told_of_make_an_answer_long() -> None:
    """A thousand tokens with twenty others each are much; their text alone is not."""

    async def size(top_logprobs: int | None) -> int:
        answer = Answer(
            Prompt("", (1,)),
            SamplingParams(),
            Tokenizer.from_folder(EXAMPLE),
            frozenset(),
            wishes=Wishes(top_logprobs=top_logprobs),
        )
        answer.request.generated.extend([5] * 1000)
        answer.text = "four" * 1000
        return Reply("chat", "m", Tokenizer.from_folder(EXAMPLE), [answer]).size

    assert asyncio.run(size(None)) < LONG_BYTES < asyncio.run(size(20))
