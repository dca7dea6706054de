"""Each rule alone, their order, and what the queue's rule is fed with."""

from __future__ import annotations

import math
from typing import Any

import pytest
from routing_cases import facts

from device.routing.policy import Policy
from device.routing.rules import decide
from device.routing.wait import SAMPLES, ServiceTimes
from device.runtime.request import FinishReason, Request
from device.runtime.scheduler import Load
from edgekit.engine.sampler import SamplingParams

TOO_LONG: dict[str, Any] = {"prompt_tokens": 101}
OWN = Policy(daily_bytes=1000)


@pytest.mark.parametrize(
    ("changed", "header"),
    [
        ({}, "local"),
        ({"prompt_tokens": 100}, "local"),
        (TOO_LONG, "cloud; reason=context"),
        ({"wait_s": 58.5}, "cloud; reason=queue"),
        ({"wait_s": 57.5}, "local"),
        ({"wait_s": 5.0, "max_wait_s": 4.0}, "cloud; reason=queue"),
        ({"wait_s": math.inf, "left_s": math.inf, "max_wait_s": 9.0}, "cloud; reason=queue"),
        ({"wait_s": math.inf, "left_s": 60.0}, "cloud; reason=queue"),
        ({"wait_s": 0.0, "service_s": 90.0}, "local"),
        ({"pinned": True, **TOO_LONG}, "local; reason=privacy"),
        ({"pinned": True}, "local; reason=privacy"),
        ({"names_tokens": True, **TOO_LONG}, "local; reason=tokens"),
        ({"link": False, **TOO_LONG}, "local; reason=link"),
        ({"bytes_left": 49, **TOO_LONG}, "local; reason=budget"),
        ({"bytes_left": 50, **TOO_LONG}, "cloud; reason=context"),
        ({"circuit": False, **TOO_LONG}, "local; reason=circuit"),
        ({"link": False, "bytes_left": 0, "circuit": False, **TOO_LONG}, "local; reason=link"),
        ({"bytes_left": 0, "circuit": False, **TOO_LONG}, "local; reason=budget"),
        ({"link": False, "bytes_left": 0, "circuit": False}, "local"),
    ],
)
def test_rules(changed: dict[str, Any], header: str) -> None:
    """The first that applies names the reason."""
    assert decide(facts(**changed), OWN).header == header


@pytest.mark.parametrize(
    ("policy", "header"),
    [
        (Policy(cloud=False), "local; reason=forbidden"),
        (Policy(reasons=frozenset({"queue"})), "local; reason=forbidden"),
        (Policy(reasons=frozenset({"context"})), "cloud; reason=context"),
        (Policy(local_only=True), "local; reason=privacy"),
        (Policy(local_clients=frozenset({"a"})), "local; reason=privacy"),
        (Policy(local_clients=frozenset({"b"})), "cloud; reason=context"),
    ],
)
def test_policies(policy: Policy, header: str) -> None:
    """What is forbidden stays, and says so."""
    assert decide(facts(**TOO_LONG), policy).header == header


def ended(reason: FinishReason = "stop") -> Request:
    request = Request(
        (1,), SamplingParams(), frozenset(), lambda *_: True, lambda _: None, started_s=0.0
    )
    request.finish(reason)
    return request


def test_the_wait_is_that_of_the_slots_ahead() -> None:
    """Free slots: none. A queue: a mean answer's time for each turn of all slots."""
    times = ServiceTimes()
    assert times.wait_s(Load(waiting=5, running=2, slots=2, queue_limit=9)) == 0  # nothing known
    for seconds in (1.0, 3.0):
        times.ended(ended(), seconds)
    times.ended(ended("cancelled"), 99.0)
    times.ended(ended("expired"), 99.0)
    assert times.mean_s == 2
    for waiting, running, wanted_s in ((0, 1, 0.0), (1, 0, 0.0), (0, 2, 1.0), (1, 2, 2.0)):
        load = Load(waiting=waiting, running=running, slots=2, queue_limit=9)
        assert times.wait_s(load) == wanted_s
    assert times.wait_s(Load(waiting=9, running=2, slots=2, queue_limit=9)) == math.inf
    assert times.wait_s(Load(waiting=0, running=2, slots=2, queue_limit=0)) == math.inf
    for _ in range(SAMPLES):
        times.ended(ended(), 7.0)
    assert times.mean_s == 7
