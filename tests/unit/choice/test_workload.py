"""What engines are compared on: which contexts, how long, and what counts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgekit.choice.workload import CONTEXTS, Rate, Workload, time_session
from edgekit.errors import EngineError


class Session:
    """A session that notes what it is fed; each call takes a second of its clock."""

    max_context, max_sequences, vocab_size = 1000, 1, 8

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.steps: list[tuple[int, int]] = []
        self.released = 0

    def prefill(self, slot: int, tokens: Any, start: int = 0, *, all_logits: bool = False) -> Any:
        assert (slot, start, all_logits) == (0, 0, False)
        self.prompts.append(list(tokens))
        return np.eye(8, dtype=np.float32)[3]

    def decode(self, slots: Any, tokens: Any, positions: Any) -> Any:
        assert slots == [0]
        self.steps.append((tokens[0], positions[0]))
        return np.eye(8, dtype=np.float32)[[5]]

    def release(self, slot: int) -> None:
        assert slot == 0
        self.released += 1

    def close(self) -> None:
        raise AssertionError


def test_contexts_fit_the_bundle() -> None:
    """The usual two where they fit, else what the bundle holds; the answer leaves a prompt."""
    assert Workload.fitting(8192, 9).contexts == CONTEXTS
    assert Workload.fitting(4096, 9).contexts == CONTEXTS
    assert Workload.fitting(4095, 9).contexts == (512,)
    small = Workload.fitting(40, 9)
    assert (small.contexts, small.answer_tokens, small.timed_steps) == ((40,), 20, 16)
    assert Workload.from_dict(small.to_dict()) == small


def test_an_engine_is_ranked_by_the_time_that_the_work_takes() -> None:
    """Prompts at one rate, answers at the other, over all contexts."""
    work = Workload((512, 4096), 256)
    rates = [Rate(512, 256.0, 128.0), Rate(4096, 3840.0, 64.0)]
    assert work.seconds(rates) == 1 + 2 + 1 + 4
    assert Rate.median([Rate(5, 1, 9), Rate(5, 3, 7), Rate(5, 2, 8)]) == Rate(5, 2, 8)


def test_a_session_is_fed_the_prompt_and_its_own_answers() -> None:
    """Positions follow the prompt without gaps; the token fed is the one chosen before."""
    session, clock = Session(), itertools.count(0.0)
    rates = time_session(session, Workload((20, 40), 8), [1, 2, 3], clock=lambda: next(clock))
    assert [len(prompt) for prompt in session.prompts] == [12, 12, 32, 32]
    assert session.prompts[0][:4] == [1, 2, 3, 1]
    assert session.steps[:3] == [(3, 12), (5, 13), (5, 14)]
    assert [position for _, position in session.steps[:8]] == list(range(12, 20))
    assert session.steps[8][1] == 32
    assert session.released == 2
    assert [rate.context_tokens for rate in rates] == [20, 40]
    assert rates[0] == Rate(20, 12.0, 1.0)


def test_one_that_is_too_slow_is_given_up() -> None:
    """The limit ends it between two steps, with a reason."""
    clock = itertools.count(0.0)
    with pytest.raises(EngineError, match="given up after 5 s"):
        time_session(Session(), Workload((20,), 8, 5.0), [1], clock=lambda: next(clock))
