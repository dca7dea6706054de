"""Prompts of an exact number of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from edgekit.benchmark.prompts import PromptMaker
from edgekit.errors import EndpointError


class Counter:
    """A client whose server counts in its own way."""

    def __init__(self, count: Callable[[str], int | None]) -> None:
        self.calls = 0
        self._count = count

    async def count(self, prompt: str) -> int | None:
        self.calls += 1
        return self._count(prompt)


def make(client: Any, count: int, tokens: int, seed: int = 0) -> list[str]:
    return asyncio.run(PromptMaker(tokens, seed).make(client, count))


def in_threes(text: str) -> int:
    """A BOS, and a token for every three letters begun."""
    return 1 + sum(-(-len(word) // 3) for word in text.split())


@pytest.mark.parametrize("tokens", [1 + 1, 32, 500])
def test_prompts_have_the_tokens_that_were_asked_for(tokens: int) -> None:
    """Whatever a word is in the server's vocabulary."""
    client = Counter(in_threes)
    made = make(client, 40, tokens)
    assert {in_threes(text) for text in made} == {tokens}
    assert client.calls < 40 * 12


def test_no_two_prompts_begin_alike() -> None:
    """A prefix cache, of this server or another, finds nothing to reuse."""
    made = make(Counter(in_threes), 200, 32)
    assert len({" ".join(text.split()[:4]) for text in made}) == 200


def test_the_seed_decides() -> None:
    """The same seed, the same prompts; later ones are others."""
    first, other = make(Counter(in_threes), 20, 32, seed=1), make(Counter(in_threes), 20, 32, 2)
    assert first == make(Counter(in_threes), 20, 32, seed=1)
    assert not set(first) & set(other)
    maker, client = PromptMaker(32, 1), Counter(in_threes)

    async def twice() -> tuple[list[str], list[str]]:
        return await maker.make(client, 9), await maker.make(client, 9)  # type: ignore[arg-type]  # counts

    before, after = asyncio.run(twice())
    assert not set(before) & set(after)


def test_a_server_that_does_not_count() -> None:
    """A word is taken for a token, and told so."""
    maker, client = PromptMaker(32, 0), Counter(lambda _: None)
    (text,) = asyncio.run(maker.make(client, 1))  # type: ignore[arg-type]  # counts
    assert len(text.split()) == 32
    assert maker.method == "words"


def test_a_template_that_is_longer_than_the_prompt() -> None:
    """Says how much it has by itself."""
    with pytest.raises(EndpointError, match="no text of 32 tokens was found: the nearest has 40"):
        make(Counter(lambda text: 40 + len(text.split())), 1, 32)


def test_a_vocabulary_that_knows_no_such_number() -> None:
    """Two tokens a word never make an odd number; it does not try for ever."""
    client = Counter(lambda text: 2 * len(text.split()))
    with pytest.raises(EndpointError, match="no text of 33 tokens"):
        make(client, 1, 33)
    assert client.calls < 100
