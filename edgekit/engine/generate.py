"""Generation over any session: tokens first, then text with its reasoning told apart.

``generate`` is the loop every caller shares; ``TextGenerator`` adds the tokenizer, stop
strings, the reasoning splitter and the figures a user wants to see. Neither knows which engine
runs below, nor schedules several sequences (a server does).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgekit.engine.candidates import Row
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.engine.session import InferenceSession, decode_rows
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.text.reasoning import ReasoningSplitter, TextPiece, prompt_opens_reasoning
from edgekit.text.stop import StopMatcher
from edgekit.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
"""``stop``: an end token or a stop string; ``length``: ``max_tokens`` or a full context."""


@dataclass(frozen=True, slots=True)
class GenerationStats:
    """What one generation took.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        generated_tokens: Tokens generated, the end token not counted.
        time_to_first_token_s: From the start of prefill to the first sampled token.
        decode_tokens_per_s: Steps after the first token, per second of the engine and the
            sampler; 0 when there were none.
        seed: What to sample with to get the same again.
        finish_reason: Why it ended.
    """

    prompt_tokens: int
    generated_tokens: int
    time_to_first_token_s: float
    decode_tokens_per_s: float
    seed: int
    finish_reason: FinishReason


def generate(
    session: InferenceSession,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_ids: Collection[int],
    *,
    slot: int = 0,
    sampler: Sampler | None = None,
) -> Iterator[int]:
    """Yield generated tokens until an end token, ``max_tokens`` or a full context.

    The end token is not yielded. Nothing runs before the first ``next``. Fewer tokens than
    :func:`token_limit` mean that an end token came.

    Args:
        session: Any engine.
        prompt_ids: At least one token.
        params: How to sample; its stop strings are the caller's business.
        eos_ids: Tokens that end the generation.
        slot: Cache slot to use; its content is replaced.
        sampler: Of ``params``; made here when None.

    Raises:
        ContextOverflowError: The prompt does not fit the context.
        EngineError: The prompt is empty, or the engine fails.
    """
    limit = token_limit(session, len(prompt_ids), params)
    sampler = sampler or Sampler(params)
    ends = frozenset(eos_ids)
    row: Row = session.prefill(slot, prompt_ids)
    for step in range(limit):
        token = sampler.sample(row, step)
        if token in ends:
            return
        yield token
        if step + 1 < limit:
            position = len(prompt_ids) + step
            row = decode_rows(session, [slot], [token], [position], [sampler.selects_at])[0]


def token_limit(session: InferenceSession, prompt_tokens: int, params: SamplingParams) -> int:
    """Return the most tokens that can be generated; the last one needs no cache entry.

    Raises:
        ContextOverflowError: The prompt does not fit the context.
        EngineError: The prompt is empty.
    """
    if prompt_tokens == 0:
        raise EngineError("The prompt has no tokens", "Give at least one")
    room = session.max_context - prompt_tokens + 1
    if room < 1:
        raise ContextOverflowError(
            f"The prompt has {prompt_tokens} tokens, the context holds {session.max_context}",
            "Shorten the prompt, or build the bundle with a larger --max-context",
        )
    return room if params.max_tokens is None else min(room, params.max_tokens)


class TextGenerator:
    """Generates text with one model.

    Args:
        session: Any engine.
        tokenizer: The model's.
        eos_ids: End tokens; None takes the tokenizer's.
        add_bos: Begin prompts with the tokenizer's BOS: for a model without a chat template.
        clock: Seconds from any start, never going back.
    """

    def __init__(
        self,
        session: InferenceSession,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int] | None = None,
        add_bos: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.session = session
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(tokenizer.eos_token_ids if eos_ids is None else eos_ids)
        self.add_bos = add_bos
        self._clock = clock

    def stream(self, prompt: str, params: SamplingParams, *, slot: int = 0) -> Generation:
        """Start a generation; iterate over it for the text, then read its ``stats``.

        Args:
            prompt: Rendered by the chat template, special tokens written out, or a base model's
                text. When it ends in ``<think>`` the generated text begins as reasoning.
            params: How to sample and when to stop. Stop strings are looked for in all the
                text, reasoning included.
            slot: Cache slot to use.

        Raises:
            ContextOverflowError: The prompt does not fit the context.
            EngineError: The prompt is empty.
        """
        return Generation(self, prompt, params, slot)

    def complete(self, prompt: str, params: SamplingParams, *, slot: int = 0) -> Generation:
        """Generate to the end; ``reasoning``, ``answer`` and ``stats`` are then filled."""
        generation = self.stream(prompt, params, slot=slot)
        for _ in generation:
            pass
        return generation

    def seconds(self) -> float:
        """Return the clock's time."""
        return self._clock()


class Generation(Iterator[TextPiece]):
    """One running generation: an iterator of text pieces.

    Attributes:
        prompt_ids: The prompt's tokens.
        tokens: Tokens generated so far.
        reasoning: Reasoning text so far.
        answer: Answer text so far.
    """

    def __init__(
        self, generator: TextGenerator, prompt: str, params: SamplingParams, slot: int
    ) -> None:
        self.prompt_ids = generator.tokenizer.encode(prompt, add_special=generator.add_bos)
        self.tokens: list[int] = []
        self.reasoning = ""
        self.answer = ""
        self._generator = generator
        self._sampler = Sampler(params)
        self._limit = token_limit(generator.session, len(self.prompt_ids), params)
        self._decoder = generator.tokenizer.stream()
        self._stop = StopMatcher(params.stop)
        self._splitter = ReasoningSplitter(in_reasoning=prompt_opens_reasoning(prompt))
        self._ids = generate(
            generator.session,
            self.prompt_ids,
            params,
            generator.eos_ids,
            slot=slot,
            sampler=self._sampler,
        )
        self._pieces = self._run()
        self._stats: GenerationStats | None = None
        self._first_s = 0.0
        self._decode_s = 0.0

    def __next__(self) -> TextPiece:
        return next(self._pieces)

    @property
    def stats(self) -> GenerationStats:
        """Figures of the finished generation.

        Raises:
            EngineError: It has not finished.
        """
        if self._stats is None:
            raise EngineError("The generation has not finished", "Iterate over it to its end")
        return self._stats

    def _run(self) -> Iterator[TextPiece]:
        while (token := self._next_token()) is not None:
            self.tokens.append(token)
            yield from self._pass_on(self._stop.feed(self._decoder.feed(token)))
            if self._stop.stopped:
                break
        if not self._stop.stopped:
            yield from self._pass_on(self._stop.feed(self._decoder.flush()) + self._stop.flush())
        yield from self._kept(self._splitter.finish())
        self._stats = self._make_stats()

    def _next_token(self) -> int | None:
        """Run the engine for one token, timing nothing else: a slow reader costs no tokens/s."""
        begin = self._generator.seconds()
        token = next(self._ids, None)
        elapsed = self._generator.seconds() - begin
        if not self.tokens:
            self._first_s = elapsed
        elif token is not None:
            self._decode_s += elapsed
        return token

    def _make_stats(self) -> GenerationStats:
        steps = len(self.tokens) - 1
        ended = self._stop.stopped or len(self.tokens) < self._limit
        return GenerationStats(
            prompt_tokens=len(self.prompt_ids),
            generated_tokens=len(self.tokens),
            time_to_first_token_s=self._first_s,
            decode_tokens_per_s=steps / self._decode_s if steps > 0 and self._decode_s else 0.0,
            seed=self._sampler.seed,
            finish_reason="stop" if ended else "length",
        )

    def _pass_on(self, text: str) -> Iterator[TextPiece]:
        return self._kept(self._splitter.feed(text)) if text else iter(())

    def _kept(self, pieces: Sequence[TextPiece]) -> Iterator[TextPiece]:
        for piece in pieces:
            if piece.is_reasoning:
                self.reasoning += piece.text
            else:
                self.answer += piece.text
            yield piece
