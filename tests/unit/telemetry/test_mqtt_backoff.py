"""When a device connects again: spread over whole windows, so that no fleet comes at once."""

from __future__ import annotations

import random
import statistics

import pytest

from device.telemetry.mqtt.backoff import Backoff, Windows
from device.telemetry.mqtt.reasons import BUSY, CONFIG, LINK, Reason


def first_waits(kind: str, failures: int, devices: int = 4000) -> list[float]:
    """Return the waiting times of a fleet after as many failures."""
    found = []
    for seed in range(devices):
        backoff = Backoff(Windows(), random.Random(seed))
        waits = [backoff.after(kind) for _ in range(failures)]
        found.append(waits[-1])
    return found


@pytest.mark.parametrize(
    ("kind", "failures", "window_s"),
    [(LINK, 1, 5), (LINK, 2, 10), (LINK, 4, 40), (LINK, 12, 300), (BUSY, 1, 60), (BUSY, 9, 300)],
)
def test_times_fill_their_window_evenly(kind: str, failures: int, window_s: float) -> None:
    """Every tenth of the window gets a tenth of the fleet, within chance."""
    waits = first_waits(kind, failures)
    counts = [0] * 10
    for wait_s in waits:
        counts[min(int(10 * wait_s / window_s), 9)] += 1
    assert max(waits) <= window_s
    # Chi-squared of 9 degrees of freedom: 33.7 is passed once in 10 000 even fleets.
    assert sum((count - 400) ** 2 / 400 for count in counts) < 33.7
    assert statistics.mean(waits) == pytest.approx(window_s / 2, rel=0.05)


def test_a_refusal_that_only_an_operator_ends_is_tried_seldom() -> None:
    """Not before half of the longest window."""
    waits = first_waits(CONFIG, 1)
    assert min(waits) >= 150
    assert max(waits) <= 300


def test_a_broker_that_comes_back_is_not_run_over() -> None:
    """10 000 devices that a restart cut off: once it refuses, no second has 1 % of them."""
    arrivals = []
    for seed in range(10_000):
        backoff = Backoff(Windows(), random.Random(seed))
        arrivals.append(sum(backoff.after(LINK) for _ in range(6)))
    seconds = [int(arrival) for arrival in arrivals]
    assert max(seconds.count(second) for second in set(seconds)) < 150


def test_only_a_connection_that_held_begins_anew() -> None:
    """One that is dropped as soon as it is up goes on backing off."""
    backoff = Backoff(Windows(), random.Random(1))
    for _ in range(20):
        backoff.after(LINK, held_s=1.0)
    assert statistics.mean(backoff.after(LINK, held_s=1.0) for _ in range(200)) > 100
    assert backoff.after(LINK, held_s=61.0) <= 5


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (None, LINK),
        (0x8D, LINK),
        (0x8B, BUSY),
        (0x97, BUSY),
        (0x9F, BUSY),
        (0x87, CONFIG),
        (0x8A, CONFIG),
        (0x9D, CONFIG),
    ],
)
def test_reason_codes_have_their_kind(code: int | None, kind: str) -> None:
    """Not authorized, banned and moved need an operator; busy ones time; the rest the link."""
    assert Reason("so", code).kind == kind


def test_a_named_server_is_told() -> None:
    """Server moved: the log says where to, and the configuration decides."""
    assert str(Reason("moved", 0x9D, "other:8883")) == "moved; it names other:8883 instead"
