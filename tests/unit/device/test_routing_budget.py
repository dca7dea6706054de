"""The day's bytes: never more than the limit, over restarts, power cuts and wrong clocks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.ledger import DAY_S, Ledger
from device.routing.budget import AHEAD_BYTES, Budget
from device.routing.errors import BudgetSpentError
from edgekit.errors import StorageError

NOON = 20_000 * DAY_S + DAY_S / 2


class Clocks:
    """A wall clock that may jump, and ticks that do not."""

    def __init__(self) -> None:
        self.wall_s, self.ticks_s = NOON, 0.0

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.ticks_s += seconds


def made(path: Path, clocks: Clocks, limit: float = 1000) -> Budget:
    return Budget(path, limit, clock=lambda: clocks.wall_s, ticks=lambda: clocks.ticks_s)


def written(path: Path) -> int:
    used = json.loads(path.read_text())["used"]
    assert isinstance(used, int)
    return used


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 10), st.integers(-5 * DAY_S, 5 * DAY_S), st.floats(0, 9e4))),
)
def test_a_day_begins_anew_only_when_one_has_passed(
    day: int, steps: list[tuple[int, int, float]]
) -> None:
    """Bytes vanish only if the UTC date is later than ever, or 24 hours of running have passed."""
    ledger, ran_s, latest = Ledger(day, 0), 0.0, day
    for used, wall_s, passed_s in steps:
        now_s = max(day * DAY_S + wall_s, 0)
        found = ledger.at(now_s, passed_s)
        ran_s += passed_s
        if found.used < ledger.used or found.day != ledger.day:
            assert now_s // DAY_S > latest or ran_s >= DAY_S - 1e-6
            ran_s, latest = 0.0, found.day
        else:
            assert found.used == ledger.used
        ledger = Ledger(found.day, found.used + used, found.age_s)


@settings(deadline=None)  # the disk's time is not ours
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("use"), st.integers(0, 400)),
            st.tuples(st.just("jump"), st.integers(-3 * DAY_S, 0)),
            st.tuples(st.just("kill"), st.just(0)),
            st.tuples(st.just("stop"), st.just(0)),
        ),
        max_size=20,
    )
)
def test_no_history_within_a_day_uses_more_than_the_limit(history: list[tuple[str, int]]) -> None:
    """Clocks jump backwards, the process is killed or stopped: the file never forgets a byte."""

    async def run(path: Path) -> int:
        clocks, used = Clocks(), 0
        budget = made(path, clocks)
        for what, amount in history:
            if what == "use":
                with contextlib.suppress(BudgetSpentError):
                    async with budget.reserved(amount):
                        budget.count(amount)
                    used += amount
                    assert written(path) >= used
            elif what == "jump":
                clocks.wall_s += amount
            else:
                if what == "stop":
                    budget.close()
                budget._held.close()
                budget = made(path, clocks)
                assert budget.left <= 1000 - used
        budget.close()
        return used

    with tempfile.TemporaryDirectory() as folder:
        assert asyncio.run(run(Path(folder) / "budget.json")) <= 1000


def test_stopped_it_forgets_nothing_and_invents_nothing(tmp_path: Path) -> None:
    """A clean stop writes what was used; a power cut costs what was written ahead."""

    async def run() -> None:
        path, clocks = tmp_path / "state" / "budget.json", Clocks()
        budget = made(path, clocks, 10 * AHEAD_BYTES)
        async with budget.reserved(500):
            budget.count(300)
            with pytest.raises(StorageError, match="in use by another server"):
                made(path, clocks)
            budget._held.close()  # as a killed process leaves it
            killed = made(path, clocks, 10 * AHEAD_BYTES)
            assert killed.left == 9 * AHEAD_BYTES - 500
            killed._held.close()
        assert budget.unreserved == 10 * AHEAD_BYTES - 300
        budget.close()
        with contextlib.closing(made(path, clocks, 10 * AHEAD_BYTES)) as again:
            assert again.left == 10 * AHEAD_BYTES - 300

    asyncio.run(run())


def test_the_day_ends_at_midnight_utc(tmp_path: Path) -> None:
    """Not before; what a request reserved stays set aside over it."""

    async def run() -> None:
        clocks = Clocks()
        budget = made(tmp_path / "budget.json", clocks)
        async with budget.reserved(400):
            budget.count(900)
            assert (budget.left, budget.unreserved) == (100, 0)
            clocks.pass_(DAY_S / 2 - 1)
            assert budget.left == 100
            clocks.pass_(1)
            assert (budget.left, budget.unreserved) == (1000, 600)
        clocks.wall_s -= 3 * DAY_S  # the day that began goes on
        budget.count(10)
        clocks.pass_(DAY_S - 1)
        assert budget.left == 990
        clocks.pass_(1)
        assert budget.left == 1000
        budget.close()

    asyncio.run(run())


def test_a_lower_limit_counts_at_once(tmp_path: Path) -> None:
    """As a remote policy sets it; what was used stays used."""
    budget = made(tmp_path / "budget.json", Clocks())
    budget.count(300)
    budget.limit = 200
    assert budget.left == 0
    budget.limit = 350
    assert budget.left == 50
    budget.close()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"day": 1, "used": -1, "age_s": 0}',
        b'{"day": 1, "used": 1.5, "age_s": 0}',
        b'{"day": 1, "used": 1, "age_s": "x"}',
        b'{"day": 1, "used": 1, "age_s": NaN}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    """Neither a whole budget nor none is guessed."""
    path = tmp_path / "budget.json"
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"no file of a byte budget.*Remove it to begin"):
        made(path, Clocks())


def test_a_path_that_holds_no_file_is_named_at_the_start(tmp_path: Path) -> None:
    """Not in the middle of a request."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "budget.json"):
        with pytest.raises(StorageError, match=r"cannot .*hoose another state_file"):
            made(path, Clocks())


def test_writes_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for some 64 KiB, whatever is read at once."""
    writes: list[Any] = []
    monkeypatch.setattr("device.routing.budget._write", lambda *args: writes.append(args))

    async def run() -> None:
        budget = made(tmp_path / "budget.json", Clocks(), 1e9)
        for _ in range(1000):
            await budget.prepare(1000)
            budget.count(1000)
        budget.close()

    asyncio.run(run())
    assert 1_000_000 / AHEAD_BYTES <= len(writes) <= 3 + 1_000_000 / AHEAD_BYTES
