"""The engine's thread: what is asked of it from outside happens between two of its steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from scheduler_cases import Engine, ask, expected, lasting
from serve_cases import wait_until

from device.runtime.faults import EngineStoppedError, QueueFullError
from device.runtime.loop import EngineLoop
from device.runtime.request import Request
from device.runtime.scheduler import Scheduler


class Waiting:
    """A sink that lets a thread wait for the end."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def __call__(self, request: Request) -> None:
        assert request.reason is not None
        self.done.set()

    def wait(self) -> None:
        assert self.done.wait(10)


class Gated(Engine):
    """An engine whose decode steps wait until they are let through."""

    def __init__(self, slots: int = 4) -> None:
        super().__init__(slots)
        self.gate = threading.Event()

    def decode(self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]) -> Any:
        assert self.gate.wait(10)
        return super().decode(slots, tokens, positions)


def test_many_threads_may_ask() -> None:
    """Each gets its own answer, and the thread ends when it is told to."""
    loop = EngineLoop(Scheduler(Engine(), queue_limit=100))
    asked: list[tuple[Request, Waiting]] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        for turn in range(5):
            end = Waiting()
            request = ask([number, turn + 1], 10, on_finish=end)
            loop.submit(request).result(10)
            with lock:
                asked.append((request, end))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for request, end in asked:
        end.wait()
        assert request.generated == expected(request.prompt, 10)
    loop.stop(10)
    assert not loop.is_alive
    with pytest.raises(EngineStoppedError):
        loop.submit(ask([1])).result(1)


def test_refusals_reach_who_asked() -> None:
    """What the scheduler raises is the future's exception; the loop goes on."""
    engine = Gated(slots=1)
    loop = EngineLoop(Scheduler(engine, queue_limit=0))
    end = Waiting()
    loop.submit(ask(lasting(6), 6, on_finish=end)).result(10)
    another = loop.submit(ask([1]))  # taken or refused once the first's step is done
    engine.gate.set()
    with pytest.raises(QueueFullError):
        another.result(10)
    end.wait()
    loop.stop()


def test_cancelling_from_outside() -> None:
    """A running request ends soon; one that has ended is let be."""
    engine = Gated(slots=1)
    loop = EngineLoop(Scheduler(engine))
    end = Waiting()
    request = ask(lasting(30), 30, on_finish=end)
    loop.submit(request).result(10)
    loop.cancel(request)
    engine.gate.set()
    end.wait()
    loop.cancel(request)
    assert request.reason == "cancelled"
    assert len(request.generated) < 30
    loop.stop(10)


def test_stopping_drains_then_cancels() -> None:
    """What runs has its time; what is left after it is cancelled, and told so."""
    engine = Gated(slots=1)
    loop = EngineLoop(Scheduler(engine))
    ends = [Waiting(), Waiting()]
    requests = [ask(lasting(20), 20, on_finish=end) for end in ends]
    for request in requests:  # the second waits for the first's step, which waits for the gate
        loop.submit(request)
    threading.Timer(0.2, engine.gate.set).start()
    loop.stop(0.05)
    for end in ends:
        end.wait()
    assert [request.reason for request in requests] == ["cancelled", "cancelled"]
    assert not loop.is_alive


def test_a_fault_ends_everyone_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw stops the loop: requests fail, later ones are refused, health is bad."""
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    engine = Gated(slots=1)
    engine.broken = ZeroDivisionError("a bug")
    loop = EngineLoop(Scheduler(engine))
    ends = [Waiting(), Waiting()]
    requests = [ask(lasting(5), 5, on_finish=end) for end in ends]
    futures = [loop.submit(request) for request in requests]
    engine.gate.set()
    ends[0].wait()
    loop._thread.join(10)
    assert len(seen) == 1
    futures[0].result(1)
    assert requests[0].reason == "failed"
    assert "ZeroDivisionError: a bug" in str(requests[0].error)
    # The second was taken before the fault, and failed with the first, or is refused.
    if futures[1].exception(1) is None:
        ends[1].wait()
        assert requests[1].reason == "failed"
    assert isinstance(loop.fault, ZeroDivisionError)
    assert not loop.is_alive
    with pytest.raises(EngineStoppedError, match="ZeroDivisionError"):
        loop.submit(ask([1])).result(1)
    loop.stop()


def test_a_step_that_hangs_is_seen() -> None:
    """How long the present step has run is told; none while the engine waits for work."""
    engine = Gated(slots=1)
    loop = EngineLoop(Scheduler(engine))
    assert loop.step_s == 0
    end = Waiting()
    loop.submit(ask(lasting(3), 3, on_finish=end)).result(10)
    time.sleep(0.05)
    assert 0.04 < loop.step_s < 10
    engine.gate.set()
    end.wait()
    until = time.monotonic() + 10
    while loop.step_s:
        assert time.monotonic() < until
    loop.stop(10)


def test_who_leaves_while_it_stops_is_not_waited_for() -> None:
    """A request that is cancelled during the drain ends at the next step, and with it the drain."""
    engine, end = Gated(slots=1), Waiting()
    loop = EngineLoop(Scheduler(engine))
    request = ask(lasting(40), 40, on_finish=end)
    loop.submit(request).result(10)
    stopper = threading.Thread(target=loop.stop, args=(30.0,))
    stopper.start()
    wait_until(lambda: loop._stopping)
    loop.cancel(request)
    engine.gate.set()
    end.wait()
    stopper.join(10)
    assert not loop.is_alive
    assert request.reason == "cancelled"
    assert len(request.generated) < 5
