"""The circuit breaker on a clock that the test turns."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device.routing.breaker import Breaker


class Clock:
    """Turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def made(clock: Clock, draw: float = 1.0) -> Breaker:
    return Breaker(3, 2.0, 60.0, clock=clock, draw=lambda: draw)


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(breaker.begin())


def test_it_opens_after_failures_in_a_row() -> None:
    """A success between them begins the count anew."""
    breaker = made(Clock())
    fail(breaker, 2)
    breaker.begin()
    breaker.succeeded()
    fail(breaker, 2)
    assert (breaker.state(), breaker.passes()) == ("closed", True)
    fail(breaker)
    assert (breaker.state(), breaker.passes()) == ("open", False)


def test_half_open_lets_one_request_pass() -> None:
    """Its success closes, its failure opens for twice as long; given up it says nothing."""
    clock = Clock()
    breaker = made(clock)
    fail(breaker, 3)
    clock.now_s = 1.99
    assert breaker.state() == "open"
    clock.now_s = 2.0
    assert (breaker.state(), breaker.passes()) == ("half-open", True)
    probe = breaker.begin()
    assert not breaker.passes()
    breaker.abandoned(object())  # one that began before is not the probe
    assert not breaker.passes()
    breaker.abandoned(probe)
    assert breaker.passes()
    fail(breaker)
    clock.now_s = 5.99
    assert breaker.state() == "open"
    clock.now_s = 6.0
    breaker.begin()
    breaker.succeeded()
    assert breaker.state() == "closed"
    fail(breaker, 2)
    assert breaker.state() == "closed"


def test_what_the_endpoint_asks_for_is_kept() -> None:
    """Retry-After opens at once and for as long, but never beyond the longest pause."""
    clock = Clock()
    breaker = made(clock)
    breaker.failed(breaker.begin(), retry_after_s=30.0)
    clock.now_s = 29.9
    assert breaker.state() == "open"
    clock.now_s = 30.0
    assert breaker.state() == "half-open"
    breaker.failed(breaker.begin(), retry_after_s=1e9)
    clock.now_s = 90.0
    assert breaker.state() == "half-open"


@given(st.integers(3, 3000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_drawn_within_bounds(failures: int, draw: float) -> None:
    """Between half of the doubled pause and all of it, never above the longest."""
    clock = Clock()
    breaker = made(clock, draw)
    fail(breaker, failures)
    full_s = min(2.0 * 2 ** min(failures - 3, 10), 60.0)
    clock.now_s = full_s / 2 - 0.001
    assert breaker.state() == "open"
    clock.now_s = full_s
    assert breaker.state() == "half-open"


def test_a_long_answer_does_not_hold_the_others_back() -> None:
    """Once a probe is being answered they pass; should it fail, the pauses go on growing."""
    clock = Clock()
    breaker = made(clock)
    fail(breaker, 3)
    clock.now_s = 2.0
    probe = breaker.begin()
    assert not breaker.passes()
    breaker.answered(probe)
    assert breaker.passes()
    breaker.failed(probe)
    clock.now_s = 5.9
    assert breaker.state() == "open"
    clock.now_s = 6.0
    breaker.answered(breaker.begin())
    breaker.succeeded()
    fail(breaker, 2)
    assert breaker.state() == "closed"
