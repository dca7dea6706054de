"""Who comes first: prompts by when they are due, clients by turns."""

from __future__ import annotations

import functools

import pytest
from scheduler_cases import Engine, ask, expected, note, run

from device.runtime.faults import QueueFullError
from device.runtime.scheduler import Scheduler


def test_prompts_that_fit_into_one_chunk_go_before_the_next_tokens() -> None:
    """Four short ones have their first token before any has its second; a fifth waits for that."""
    engine = Engine()
    scheduler = Scheduler(engine, chunk_tokens=12)
    requests = [ask([n, n, n], 4) for n in range(1, 6)]
    for request in requests:
        scheduler.submit(request)
    for _ in range(4):
        scheduler.step()
    assert [len(request.generated) for request in requests] == [1, 1, 1, 1, 0]
    scheduler.step()
    assert [len(request.generated) for request in requests] == [2, 2, 2, 2, 0]
    run(scheduler)
    assert all(request.generated == expected(request.prompt, 4) for request in requests)


def test_a_short_prompt_that_comes_while_another_runs_goes_before_the_next_tokens() -> None:
    """Who comes between two runs of the engine waits for no token of the others."""
    scheduler = Scheduler(Engine(), chunk_tokens=12)
    first, second, third = ask([1, 2], 9), ask([3, 4], 9), ask([5, 6], 9)
    scheduler.submit(first)
    scheduler.step()
    scheduler.step()
    scheduler.submit(second)
    scheduler.step()
    scheduler.submit(third)
    scheduler.step()
    assert [len(request.generated) for request in (first, second, third)] == [2, 1, 1]


def test_prompts_of_one_length_go_in_their_order() -> None:
    """Who came first is told first, whichever slot it has."""
    scheduler = Scheduler(Engine(slots=4), chunk_tokens=4)
    order: list[str] = []
    for number in range(12):
        finish = functools.partial(note, order, str(number))
        scheduler.submit(ask([number + 1] * 8, 1, on_finish=finish))
    run(scheduler)
    assert order == [str(number) for number in range(12)]


def test_short_prompts_pass_a_long_one_but_not_for_ever() -> None:
    """A long prompt costs those behind it a chunk each, and runs though others keep coming."""
    scheduler = Scheduler(Engine(slots=3), chunk_tokens=4)
    long = ask([7] * 48, 1)
    scheduler.submit(long)
    scheduler.step()
    short = ask([1, 2, 3], 1)
    scheduler.submit(short)
    scheduler.step()
    assert (short.reason, long.reason) == ("length", None)
    steps = 0
    while not long.generated:
        scheduler.submit(ask([8, steps % 90, 3, 4], 1))
        scheduler.step()
        steps += 1
    assert steps <= 48 // 4 + 48 // 4  # its own chunks, and as many tokens of others


def test_one_who_fills_the_queue_makes_room_for_others() -> None:
    """Its last request is refused after all, down to equal shares; what has a slot is let be."""
    scheduler = Scheduler(Engine(slots=1), queue_limit=4)
    greedy = [ask([n + 1], client="greedy") for n in range(5)]
    modest = [ask([n + 50], client="modest") for n in range(3)]
    scheduler.submit(greedy[0])
    scheduler.step()
    for request in (*greedy[1:], *modest[:2]):
        scheduler.submit(request)
    for request in (modest[2], ask([9], client="greedy")):
        with pytest.raises(QueueFullError):
            scheduler.submit(request)
    assert [request.reason for request in greedy] == [None, None, None, "failed", "failed"]
    assert isinstance(greedy[4].error, QueueFullError)
    run(scheduler)
    for request in (*greedy[:3], *modest[:2]):
        assert request.generated == expected(request.prompt, 8)


def test_clients_take_turns() -> None:
    """One who asks a lot waits for itself; who asks once waits for one of the other's."""
    scheduler = Scheduler(Engine(slots=1))
    order: list[str] = []
    for name, count in (("greedy", 4), ("modest", 1)):
        for number in range(count):
            finish = functools.partial(note, order, f"{name}{number}")
            scheduler.submit(ask([1, 2], 1, client=name, on_finish=finish))
    run(scheduler)
    assert order == ["greedy0", "modest0", "greedy1", "greedy2", "greedy3"]
