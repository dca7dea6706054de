"""Continuous batching on an engine that is strict about what it is fed, and can be predicted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from scheduler_cases import (
    CONTEXT,
    VOCABULARY,
    CopyingEngine,
    Engine,
    ask,
    expected,
    keep_on,
    lasting,
    run,
)

from device.runtime import slots as slots_module
from device.runtime.faults import QueueFullError
from device.runtime.request import Request
from device.runtime.scheduler import Scheduler
from device.runtime.slots import covering_block
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import ContextOverflowError, EngineError


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_request_gets_the_answer_it_would_get_alone() -> None:
    """A hundred prompts of all lengths over four slots: no token of one ever reaches another."""
    chance = random.Random(5)
    prompts = [
        [chance.randrange(1, VOCABULARY) for _ in range(chance.randrange(1, 50))]
        for _ in range(100)
    ]
    requests = [ask(prompt, chance.randrange(1, 30)) for prompt in prompts]
    engine = Engine()
    scheduler = Scheduler(engine, chunk_tokens=7, queue_limit=100)
    for request in requests:
        scheduler.submit(request)
        for _ in range(chance.randrange(3)):
            scheduler.step()
    run(scheduler)
    for prompt, request in zip(prompts, requests, strict=True):
        room = CONTEXT - len(prompt) + 1
        wanted = expected(prompt, min(room, request.params.max_tokens or 0))
        assert request.generated == wanted
        full = len(wanted) == min(room, request.params.max_tokens or 0)
        assert request.reason == ("length" if full else "stop")
    assert max(engine.batches) == 4
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_prompts_do_not_hold_up_those_who_generate() -> None:
    """Between two chunks of a long prompt everyone who generates gets a token."""
    engine = Engine(slots=2)
    scheduler = Scheduler(engine, chunk_tokens=5)
    first, second = ask(lasting(20), 40), ask(range(1, 50), 4)
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(second)
    before = len(first.generated)
    while second.first_token_s is None:
        scheduler.step()
    assert len(first.generated) - before == 10  # one a chunk of 5, the last one's step included


def test_a_prefix_that_a_slot_holds_is_not_run_again() -> None:
    """The longest common beginning is reused, prompt and answer of the turn before included."""
    engine = Engine()
    scheduler = Scheduler(engine)
    chat = list(range(30, 50))
    first = ask(chat)
    scheduler.submit(first)
    run(scheduler)
    again = chat + first.generated + [11, 12]
    second, other = ask(again, 4), ask([9, 9, 9])
    scheduler.submit(second)
    scheduler.submit(other)
    before = engine.prefilled
    run(scheduler)
    # The last generated token was never fed: nothing has read it.
    assert second.reused_tokens == len(chat) + len(first.generated) - 1
    assert engine.prefilled - before == 3 + len(again) - second.reused_tokens
    assert second.generated == expected(again, 4)
    same = ask(again, 4)
    scheduler.submit(same)
    run(scheduler)
    assert same.reused_tokens == len(again) - 1
    assert same.generated == second.generated


def test_a_prefix_that_another_slot_holds_is_copied() -> None:
    """From one that generates: only the rest of the prompt is run, and all answers are right."""
    engine = CopyingEngine()
    scheduler = Scheduler(engine)
    prompt = lasting(20)[:1] * 30
    first, second = ask(prompt, 20), ask([*prompt, 5, 6], 6)
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(second)
    run(scheduler)
    assert (engine.copied, engine.prefilled) == (30, 32)
    assert second.reused_tokens == 30
    assert (first.generated, second.generated) == (
        expected(prompt, 20),
        expected([*prompt, 5, 6], 6),
    )


def test_prompts_that_begin_alike_share_the_work() -> None:
    """Four at the same time run what they have in common once, chunk by chunk."""
    engine = CopyingEngine()
    scheduler = Scheduler(engine, chunk_tokens=16)
    prompts = [[*range(1, 49), n] for n in range(60, 64)]
    requests = [ask(prompt, 5) for prompt in prompts]
    for request in requests:
        scheduler.submit(request)
    run(scheduler)
    assert [request.generated for request in requests] == [expected(p, 5) for p in prompts]
    assert engine.prefilled == 48 + len(prompts)
    assert sum(request.reused_tokens for request in requests) == 3 * 48


def test_an_engine_may_rather_run_tokens_again() -> None:
    """Nothing is taken for copied then."""
    engine = CopyingEngine(worth=False)
    scheduler = Scheduler(engine, chunk_tokens=16)
    requests = [ask([*range(1, 49), n], 5) for n in range(2)]
    for request in requests:
        scheduler.submit(request)
    run(scheduler)
    assert [request.reused_tokens for request in requests] == [0, 0]
    assert engine.prefilled == 2 * 49


def test_long_texts_are_kept_and_the_one_unused_longest_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Short texts take turns where nothing long is; a long one is found again."""
    monkeypatch.setattr(slots_module, "LONG_TEXT_TOKENS", 20)
    engine = Engine(slots=3)
    scheduler = Scheduler(engine)

    def after(prompt: Sequence[int]) -> int:
        request = ask(prompt, 1)
        scheduler.submit(request)
        run(scheduler)
        return [held[: len(prompt)] for held in engine.held].index(list(prompt))

    texts = [[n] * 25 for n in range(1, 5)]
    assert [after(text) for text in texts[:2]] == [0, 2]
    assert [after([9, n]) for n in range(3)] == [1, 1, 1]
    assert after(texts[2]) == 1
    assert after([*texts[0], 7]) == 0  # what it begins with is there
    assert after(texts[3]) == 2  # unused for longest


def test_those_who_generate_lie_together() -> None:
    """Two at once make a block of two, four one of four, wherever others were before."""
    engine = Engine(slots=8)
    scheduler = Scheduler(engine)
    for used in range(5):
        engine.held[used] = [1] * 300  # long texts, to be kept
        scheduler._slots.all[used].tokens = [1] * 300
    for count, block in ((2, 2), (1, 4), (1, 4)):
        for number in range(count):
            scheduler.submit(ask(lasting(30 + number), 60))
        scheduler.step()
        busy = [slot.index for slot in scheduler._slots.all if slot.request is not None]
        assert covering_block(busy) == block
    assert 4 in busy  # the last had to take a long text's place


def test_cancelling_one_touches_no_other() -> None:
    """Waiting or running, it ends at once; the others' tokens are as if it had never been."""
    scheduler = Scheduler(Engine(slots=2), chunk_tokens=2)
    requests = [ask([n, n, n, n, n], 12) for n in range(1, 7)]
    told: list[Request] = []
    for request in requests:
        request.on_finish = told.append
        scheduler.submit(request)
    for _ in range(4):
        scheduler.step()
    for gone in (requests[0], requests[4]):  # one that runs, one that waits
        scheduler.cancel(gone)
        assert gone.reason == "cancelled"
        scheduler.cancel(gone)  # twice is once
    run(scheduler)
    for request in requests[1:4] + requests[5:]:
        assert request.generated == expected(request.prompt, 12)
    assert sorted(map(requests.index, told)) == list(range(6))


def test_too_many_are_refused_and_nothing_else_changes() -> None:
    """As many wait as may beside those that the free slots take at the next step."""
    scheduler = Scheduler(Engine(slots=2), queue_limit=3)
    requests = [ask([n + 1]) for n in range(6)]
    for request in requests[:5]:
        scheduler.submit(request)
    with pytest.raises(QueueFullError, match="5 requests wait already"):
        scheduler.submit(requests[5])
    scheduler.step()
    with pytest.raises(QueueFullError):
        scheduler.submit(requests[5])
    run(scheduler)
    scheduler.submit(requests[5])
    run(scheduler)
    assert all(request.generated == expected(request.prompt, 8) for request in requests)


def test_deadlines_end_what_waits_and_what_runs() -> None:
    """A request is not answered after its time, and its slot is another's."""
    clock = Clock()
    scheduler = Scheduler(Engine(slots=1), clock=clock)
    late, waiting, patient = (
        ask([1, 2], 40, deadline_s=105.0),
        ask([3, 4], 2, deadline_s=104.0),
        ask([5, 6], 2),
    )
    for request in (late, waiting, patient):
        scheduler.submit(request)
    scheduler.step()
    clock.now = 104.5
    scheduler.step()
    assert (waiting.reason, waiting.started_s, late.reason) == ("expired", None, None)
    clock.now = 105.0
    run(scheduler)
    assert late.reason == "expired"
    assert late.generated == expected([1, 2], 40)[: len(late.generated)]
    assert patient.generated == expected([5, 6], 2)
    assert (patient.queued_s, patient.started_s, patient.first_token_s) == (100.0, 105.0, 105.0)


def five(request: Request, token: int) -> bool:
    """Want five tokens."""
    return keep_on(request, token) and len(request.generated) < 5


def test_a_sink_may_end_its_request() -> None:
    """What finds a stop string in the text says so, and the request stops there."""
    scheduler = Scheduler(Engine())
    request = ask([1, 2, 3], 30, on_token=five)
    scheduler.submit(request)
    run(scheduler)
    assert request.generated == expected([1, 2, 3], 30)[:5]
    assert request.reason == "stop"


def test_logits_that_are_not_finite_fail_their_request_alone() -> None:
    """The others of the batch lose nothing, and the slot is not reused as it is."""
    engine = Engine()
    scheduler = Scheduler(engine)
    requests = [ask([n, n + 1, n + 2], 10) for n in range(1, 40, 10)]
    # One token that only the second request ever holds.
    engine.poison = set(expected(requests[1].prompt, 10)) - {
        token for other in (0, 2, 3) for token in
        [*requests[other].prompt, *expected(requests[other].prompt, 10)]
    }  # fmt: skip
    assert engine.poison
    for request in requests:
        scheduler.submit(request)
    run(scheduler)
    assert requests[1].reason == "failed"
    assert "not finite" in str(requests[1].error)
    for request in (requests[0], *requests[2:]):
        assert request.generated == expected(request.prompt, 10)
    engine.poison = set()
    again = ask(requests[1].prompt, 10)
    scheduler.submit(again)
    run(scheduler)
    assert again.generated == expected(again.prompt, 10)


def test_an_engine_that_fails_ends_all_and_the_next_may_run() -> None:
    """Nothing is left hanging, and nothing spins."""
    engine = Engine()
    scheduler = Scheduler(engine)
    requests = [ask([n, n]) for n in range(1, 4)]
    for request in requests:
        scheduler.submit(request)
    engine.broken = EngineError("out of memory")
    run(scheduler)
    assert [request.reason for request in requests] == ["failed"] * 3
    engine.broken = None
    fine = ask([1, 1])
    scheduler.submit(fine)
    run(scheduler)
    assert fine.generated == expected([1, 1], 8)


def test_what_cannot_fit_is_refused_before_it_waits() -> None:
    """A prompt longer than the context, and none at all."""
    scheduler = Scheduler(Engine())
    with pytest.raises(ContextOverflowError):
        scheduler.submit(ask(range(1, CONTEXT + 2)))
    with pytest.raises(EngineError, match="no tokens"):
        scheduler.submit(ask([]))
    longest = ask([1] * CONTEXT)
    scheduler.submit(longest)
    run(scheduler)
    assert len(longest.generated) <= 1


def test_draws_are_a_function_of_seed_and_step() -> None:
    """Sampled with one seed a request says the same whoever is beside it."""
    params = SamplingParams(temperature=1.5, top_p=0.9, seed=3, max_tokens=12)
    answers = []
    for others in (0, 3):
        scheduler = Scheduler(Engine())
        request = ask([1, 2, 3], params=params)
        for number in range(others):
            scheduler.submit(ask([50 + number], 20))
        scheduler.submit(request)
        run(scheduler)
        answers.append(request.generated)
    assert answers[0] == answers[1]
    assert len(set(map(tuple, itertools.pairwise(answers[0])))) > 1
