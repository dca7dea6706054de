"""Greedy completion of many prompts, as many at once as the engine has slots.

A slot that finishes takes the next prompt, so the batch stays full. For evaluation and golden
sequences; text, sampling and streaming are ``edgekit.engine.generate``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from edgekit.engine.candidates import best_of
from edgekit.engine.session import InferenceSession, decode_rows
from edgekit.errors import ContextOverflowError


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt.

    Attributes:
        tokens: Generated ids, the end token left out.
        finished: It ended by itself, not by a limit.
    """

    tokens: tuple[int, ...]
    finished: bool


@dataclass(slots=True)
class _Running:
    index: int
    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        """Where the last token goes in the cache."""
        return self.prompt_tokens + len(self.tokens) - 1


def greedy_completions(
    session: InferenceSession,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Collection[int],
    max_new_tokens: int,
    on_finish: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Complete every prompt with the likeliest tokens.

    Args:
        session: Any engine; all its slots are used and released.
        prompts: Token ids of each prompt.
        eos_ids: Tokens that end a completion.
        max_new_tokens: Most tokens of a completion; a full context ends one too.
        on_finish: Called with a prompt's index when its completion ends.

    Returns:
        One completion a prompt, in order.

    Raises:
        ContextOverflowError: A prompt does not fit the context.
        EngineError: The engine fails.
    """
    for index, prompt in enumerate(prompts):
        if len(prompt) > session.max_context:
            raise ContextOverflowError(
                f"prompt {index + 1} has {len(prompt)} tokens, the context {session.max_context}",
                "Shorten it, or build with a larger --max-context",
            )
    batch = _Batch(session, frozenset(eos_ids), max_new_tokens, on_finish)
    waiting = list(range(len(prompts)))[::-1]
    while waiting or batch.running:
        for slot in range(session.max_sequences):
            while waiting and slot not in batch.running:
                index = waiting.pop()
                batch.begin(slot, index, prompts[index])
        if batch.running:
            batch.step()
    return [batch.done[index] for index in range(len(prompts))]


class _Batch:
    """The sequences in the engine's slots, and those that are done by prompt index."""

    def __init__(
        self,
        session: InferenceSession,
        ends: frozenset[int],
        max_new_tokens: int,
        on_finish: Callable[[int], None] | None,
    ) -> None:
        self.running: dict[int, _Running] = {}
        self.done: dict[int, Completion] = {}
        self._session = session
        self._ends = ends
        self._max_new_tokens = max_new_tokens
        self._on_finish = on_finish

    def begin(self, slot: int, index: int, prompt: Sequence[int]) -> None:
        """Prefill a prompt in a free slot."""
        self.running[slot] = _Running(index, len(prompt))
        self._take(slot, int(self._session.prefill(slot, prompt).argmax()))

    def step(self) -> None:
        """Decode one token in every slot that runs."""
        slots = sorted(self.running)
        tokens = [self.running[slot].tokens[-1] for slot in slots]
        positions = [self.running[slot].position for slot in slots]
        rows = decode_rows(self._session, slots, tokens, positions, [0.0] * len(slots))
        for slot, token in zip(slots, [best_of(row) for row in rows], strict=True):
            self._take(slot, token)

    def _take(self, slot: int, token: int) -> None:
        """Add a token to a slot's completion, or end it."""
        current = self.running[slot]
        ended = token in self._ends
        if not ended:
            current.tokens.append(token)
            full = current.position >= self._session.max_context
            if len(current.tokens) < self._max_new_tokens and not full:
                return
        self.done[current.index] = Completion(tuple(current.tokens), ended)
        del self.running[slot]
        self._session.release(slot)
        if self._on_finish is not None:
            self._on_finish(current.index)
