"""Prompts of an exact number of tokens, no two of which begin alike.

The server's ``/tokenize`` counts, so that what the chat template or a BOS adds counts, too. Without
one a word is taken for a token, and the report says so; how many tokens the server then counted
stands beside it either way.
"""

from __future__ import annotations

import asyncio
import random
from typing import Literal

from edgekit.benchmark.endpoint import Client
from edgekit.errors import EndpointError

Method = Literal["tokenize", "words"]
_NOUNS = (
    "time year people way day man thing woman life child world school state family student group "
    "country problem hand part place case week company system program question work government "
    "number night point home water room mother area money story fact month lot right study book "
    "eye job word business issue side kind head house service friend father power hour game line "
    "end member law car city name team minute idea body"
)
"""English's commonest nouns: a token each in most vocabularies."""
WORDS = tuple(_NOUNS.split())
FILLER = "a"
MAX_TRIES = 60
AT_ONCE = 8
"""Prompts that are counted at a time."""


class PromptMaker:
    """Makes prompts from a seed; never the same twice.

    Args:
        tokens: Of each prompt.
        seed: Of the words.
    """

    def __init__(self, tokens: int, seed: int) -> None:
        self._tokens, self._seed = tokens, seed
        self._made = 0
        self._words = tokens
        self.method: Method = "tokenize"

    async def make(self, client: Client, count: int) -> list[str]:
        """Return that many new prompts.

        Args:
            client: Whose server counts.
            count: How many.

        Raises:
            EndpointError: No text has that many tokens, or the server fails.
        """
        made: list[str] = []
        while len(made) < count:
            # The first tells how many words the others have.
            at_once = min(AT_ONCE, count - len(made)) if self._made else 1
            numbers = range(self._made, self._made + at_once)
            self._made += at_once
            made += await asyncio.gather(*(self._one(client, number) for number in numbers))
        return made

    async def _one(self, client: Client, number: int) -> str:
        chosen = random.Random(f"{self._seed}:{number}")  # noqa: S311 - words, not keys
        words = [chosen.choice(WORDS) for _ in range(self._words)]
        words[0] = WORDS[(self._seed + number) % len(WORDS)]  # other than those just before
        for _ in range(MAX_TRIES):
            text = " ".join(words)
            found = await client.count(text)
            if found is None:
                self.method = "words"
                return text
            if found == self._tokens:
                self._words = len(words)
                return text
            if not words and found > self._tokens:
                break
            per_word = max(found / max(len(words), 1), 1.0)
            words = self._nearer(words, found, per_word, chosen)
        raise EndpointError(
            f"no text of {self._tokens} tokens was found: the nearest has {found}",
            "Choose more --prompt-tokens, or --endpoint completions, which has no template",
        )

    def _nearer(
        self, words: list[str], found: int, per_word: float, chosen: random.Random
    ) -> list[str]:
        """Return words whose number of tokens is nearer to what is wanted."""
        missing = self._tokens - found
        if missing < 0:
            return words[: len(words) - max(1, int(-missing / per_word))]
        whole = int(missing / per_word) - 1
        if whole > 0:
            return words + [chosen.choice(WORDS) for _ in range(whole)]
        return words + [FILLER] * missing
