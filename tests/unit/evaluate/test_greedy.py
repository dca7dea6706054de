"""Greedy completion of many prompts: batched, ordered, bounded."""

from __future__ import annotations

import numpy as np
import pytest
from evaluate_fakes import ReferenceSession, make_model, random_windows

from edgekit.errors import ContextOverflowError
from edgekit.evaluate.greedy import greedy_completions

MODEL = make_model()
PROMPTS = [window.tolist() for window in random_windows(128, [3, 7, 5, 4, 6])]


def alone(prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(MODEL.logits([np.array(tokens)])[0][-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("slots", [1, 3])
def test_batched_is_one_by_one(slots: int) -> None:
    """Every completion is the likeliest tokens of its own prompt, whatever runs beside it."""
    session = ReferenceSession(MODEL, max_sequences=slots)
    finished: list[int] = []
    done = greedy_completions(
        session, PROMPTS, eos_ids=[], max_new_tokens=4, on_finish=finished.append
    )
    assert [list(c.tokens) for c in done] == [alone(prompt, 4) for prompt in PROMPTS]
    assert not any(c.finished for c in done)
    assert session.widest_decode == slots
    assert sorted(finished) == [0, 1, 2, 3, 4]
    assert not session.slots  # all released


def test_an_end_token_ends_it() -> None:
    """The end token is left out, ends only its own completion, and its slot is used again."""
    whole = [alone(prompt, 6) for prompt in PROMPTS]
    end = whole[0][2]
    done = greedy_completions(
        ReferenceSession(MODEL, max_sequences=2), PROMPTS, eos_ids={end}, max_new_tokens=6
    )
    for completion, tokens in zip(done, whole, strict=True):
        cut = tokens.index(end) if end in tokens else 6
        assert list(completion.tokens) == tokens[:cut]
        assert completion.finished == (end in tokens)


def test_a_full_context_ends_it() -> None:
    """A completion stops when its next token has no place in the cache."""
    session = ReferenceSession(MODEL, max_context=8)
    done = greedy_completions(session, PROMPTS, eos_ids=[], max_new_tokens=100)
    assert [len(prompt) + len(c.tokens) for prompt, c in zip(PROMPTS, done, strict=True)] == [9] * 5


def test_a_prompt_beyond_the_context_is_named() -> None:
    """A prompt that does not fit is an error before anything runs."""
    session = ReferenceSession(MODEL, max_context=6)
    with pytest.raises(ContextOverflowError, match="prompt 2 has 7 tokens"):
        greedy_completions(session, PROMPTS, eos_ids=[], max_new_tokens=1)
    assert not session.longest_prefill
