"""What engines are compared on: prompts of some lengths, each with an answer; batch 1."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.engine.candidates import best_of
from edgekit.engine.session import InferenceSession, decode_rows
from edgekit.errors import EngineError

CONTEXTS = (512, 4096)
"""Prompt and answer together: a question, and a long text or chat."""
ANSWER_TOKENS = 256
WARMUP_STEPS = 4
TIMED_STEPS = 48
PREFILLS = 2


@dataclass(frozen=True, slots=True)
class Workload:
    """The work.

    Attributes:
        contexts: Tokens of prompt and answer together, ascending.
        answer_tokens: Of these, the answer's.
        limit_s: Seconds after which a candidate is given up.
    """

    contexts: tuple[int, ...]
    answer_tokens: int = ANSWER_TOKENS
    limit_s: float = 900.0

    @classmethod
    def fitting(cls, max_context: int, limit_s: float) -> Workload:
        """Return the usual work, cut to what a bundle's context holds."""
        fitting = tuple(context for context in CONTEXTS if context <= max_context)
        contexts = fitting or (max_context,)
        return cls(contexts, min(ANSWER_TOKENS, contexts[0] // 2), limit_s)

    @property
    def timed_steps(self) -> int:
        """Decode steps that are timed behind each context."""
        return max(1, min(TIMED_STEPS, self.answer_tokens - WARMUP_STEPS))

    def seconds(self, rates: Sequence[Rate]) -> float:
        """Return the time that all of it takes at these rates, by which engines are ranked."""
        return sum(
            (rate.context_tokens - self.answer_tokens) / rate.prefill_tokens_per_s
            + self.answer_tokens / rate.decode_tokens_per_s
            for rate in rates
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "contexts": list(self.contexts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workload:
        """Read what :meth:`to_dict` wrote."""
        return cls(tuple(data["contexts"]), data["answer_tokens"], data["limit_s"])


@dataclass(frozen=True, slots=True)
class Rate:
    """Speeds at one context, of one sequence."""

    context_tokens: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    @classmethod
    def median(cls, rates: Sequence[Rate]) -> Rate:
        """Return the medians of one context's rates."""
        return cls(
            rates[0].context_tokens,
            round(statistics.median(rate.prefill_tokens_per_s for rate in rates), 3),
            round(statistics.median(rate.decode_tokens_per_s for rate in rates), 3),
        )


def time_session(
    session: InferenceSession,
    workload: Workload,
    tokens: Sequence[int],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Rate]:
    """Time a session at every context.

    Args:
        session: Slot 0 is used and released.
        workload: The work.
        tokens: Ids of some text; repeated as often as it takes.
        clock: Seconds.

    Raises:
        EngineError: It takes longer than the workload's limit, or the engine fails.
    """
    start_s, rates = clock(), []

    def give_up_late() -> None:
        if clock() - start_s > workload.limit_s:
            raise EngineError(f"given up after {workload.limit_s:g} s: it is too slow to be chosen")

    for context in workload.contexts:
        prompt = list(itertools.islice(itertools.cycle(tokens), context - workload.answer_tokens))
        prefills = []
        for _ in range(PREFILLS):  # the first settles shapes
            began_s = clock()
            session.prefill(0, prompt)
            prefills.append(clock() - began_s)
            give_up_late()
        steps, token = [], prompt[-1]
        for step in range(WARMUP_STEPS + workload.timed_steps):
            began_s = clock()
            (row,) = decode_rows(session, [0], [token], [len(prompt) + step], [0.0])
            token = best_of(row)
            steps.append(clock() - began_s)
            give_up_late()
        session.release(0)
        decode_s = statistics.median(steps[WARMUP_STEPS:])
        rates.append(Rate(context, round(len(prompt) / min(prefills), 3), round(1 / decode_s, 3)))
    return rates
