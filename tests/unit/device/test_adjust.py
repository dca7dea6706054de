"""Penalties and biases: the formulas of their sources, on the request's own tokens alone."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_cases import VOCABULARY, Engine, ask, expected, lasting

from device.runtime.adjust import Adjustment
from device.runtime.scheduler import Scheduler

LOGITS = np.array([2.0, -1.0, 0.5, 3.0], np.float32)


@pytest.mark.parametrize(
    ("adjustment", "wanted"),
    [
        (Adjustment(), [2, -1, 0.5, 3]),
        (Adjustment(frequency=0.5), [2, -1, -0.5, 2.5]),
        (Adjustment(presence=1.5), [2, -1, -1, 1.5]),
        (Adjustment(frequency=-1, presence=0.25), [2, -1, 2.25, 3.75]),
        (Adjustment(repetition=2), [2, -2, 0.25, 1.5]),
        (Adjustment(bias={0: -100, 2: 5}), [-98, -1, 5.5, 3]),
        (Adjustment(presence=1, repetition=2, bias={3: 1}), [2, -2, -0.75, 1.5]),
    ],
)
def test_formulas(adjustment: Adjustment, wanted: list[float]) -> None:
    """Generated 2, 2 and 3 after a prompt of 1: only repetition minds the prompt."""
    given = LOGITS.copy()
    np.testing.assert_allclose(adjustment.apply(given, [1], [2, 2, 3]), wanted, rtol=1e-6)
    np.testing.assert_array_equal(given, LOGITS)
    assert adjustment.changes_nothing == (wanted == [2, -1, 0.5, 3])


def test_a_request_changes_its_own_logits_only() -> None:
    """A forbidden token is never said; who is beside it says what it always says."""
    prompt = lasting(12)
    usual = expected(prompt, 12)
    forbidden = usual[4]
    scheduler = Scheduler(Engine(slots=2))
    biased = ask(prompt, 12, adjustment=Adjustment(bias={forbidden: -100}))
    plain = ask(prompt, 12)
    for request in (biased, plain):
        scheduler.submit(request)
    while scheduler.step():
        pass
    assert plain.generated == usual
    assert biased.generated[:4] == usual[:4]
    assert forbidden not in biased.generated


def test_what_was_said_is_not_said_again() -> None:
    """With a strong presence penalty no token comes twice."""
    scheduler = Scheduler(Engine(slots=1))
    request = ask(lasting(30), 30, adjustment=Adjustment(presence=100), ends=frozenset())
    scheduler.submit(request)
    while scheduler.step():
        pass
    assert len(set(request.generated)) == len(request.generated) == min(30, VOCABULARY)
