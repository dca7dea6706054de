"""Who generates in which slot: an engine runs all slots of a block, so they are kept together."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scheduler_cases import CopyingEngine, Engine, ask, expected, lasting, run

from device.runtime.scheduler import Scheduler
from device.runtime.slots import covering_block, moves


@given(st.sets(st.integers(0, 15), min_size=1), st.sets(st.integers(0, 15)))
@example({7, 8}, {6, 9})
def test_moves_make_the_block_as_small_as_it_can_be(busy: set[int], taken: set[int]) -> None:
    """From busy to free slots, each once; none where a smaller block has no room."""
    free = sorted(set(range(16)) - busy - taken)
    found = moves(sorted(busy), free)
    sources, targets = [source for source, _ in found], [target for _, target in found]
    assert len(set(sources)) == len(set(targets)) == len(found)
    assert set(sources) <= busy
    assert set(targets) <= set(free)
    after = busy - set(sources) | set(targets)
    sizes = [
        size
        for size in (1, 2, 4, 8, 16)
        for first in range(0, 16, size)
        if len(set(range(first, first + size)) & (busy | set(free))) >= len(busy)
    ]
    assert covering_block(sorted(after)) == min(sizes) <= covering_block(sorted(busy))
    assert found or covering_block(sorted(busy)) == min(sizes)


def _scattered(engine: Engine) -> tuple[Scheduler, list[list[int]]]:
    """Return a scheduler whose first and sixth request outlast the others, and their prompts."""
    scheduler = Scheduler(engine)
    long = [lasting(20), [*lasting(20), 3]]
    limits = [20, 3, 3, 3, 3, 20, 3, 3]
    prompts = [long[0], *([n, n] for n in range(60, 64)), long[1], [70], [71]]
    requests = [ask(prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    for request in requests:
        scheduler.submit(request)
    run(scheduler)
    for request, prompt, limit in zip(requests, prompts, limits, strict=True):
        assert request.generated == expected(prompt, limit)
    return scheduler, engine.ran


@pytest.mark.parametrize("worth", [True, False])
def test_those_who_are_left_move_together(*, worth: bool) -> None:
    """Two of eight that go on are run as two, and say what they would have said."""
    engine = CopyingEngine(8, worth=worth)
    _, ran = _scattered(engine)
    blocks = [covering_block(slots) for slots in ran]
    assert blocks[0] == 8
    last = [size for slots, size in zip(ran, blocks, strict=True) if len(slots) == 2]
    assert last
    assert set(last) == ({2} if worth else {8})


def test_an_engine_that_copies_nothing_is_not_asked_to() -> None:
    """Its slots stay where they are."""
    _, ran = _scattered(Engine(8))
    assert {covering_block(slots) for slots in ran if len(slots) == 2} == {8}


def test_a_slot_that_cannot_be_copied_ends_its_own_request_alone() -> None:
    """The engine has lost what one holds: the others go on."""
    engine = CopyingEngine(4)
    scheduler = Scheduler(engine)
    requests = [ask(lasting(9), 9), ask([60, 60], 2), ask([61], 2), ask([*lasting(9), 4], 9)]
    for request in requests:
        scheduler.submit(request)
    while requests[1].reason is None or requests[2].reason is None:
        scheduler.step()
    engine.copy_prefix = _broken  # type: ignore[method-assign]
    run(scheduler)
    assert sorted(str(request.reason) for request in (requests[0], requests[3])) == [
        "failed",
        "length",
    ]


def _broken(source: int, target: int, count: int) -> bool:
    from edgekit.errors import EngineError

    raise EngineError(f"slot {source} does not hold {count} positions to give to {target}")
