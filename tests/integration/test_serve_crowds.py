"""A server in a process of its own under a thousand clients that misbehave, and more who wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import httpx
import pytest
from chaos_clients import crowd
from serve_cases import connect
from soak_serve import Held, held, serving, soak

from device.api.aside import WORKERS

GROWTH_MIB = 8.0
"""Resident memory may grow as much from the second quarter to the last: what an allocator keeps."""


def quiet(address: str, pid: int, files: int, within_s: float = 60.0) -> Held:
    """Wait until nothing runs or waits and no more files are open than before."""
    end = time.monotonic() + within_s
    while True:
        text, now = httpx.get(f"{address}/metrics").text, held(pid)
        idle = [f"edgekit_num_requests_{state}" for state in ("running", "waiting")]
        counts = [line.split()[-1] for line in text.splitlines() if line.startswith(tuple(idle))]
        assert len(counts) == 2
        if counts == ["0.0", "0.0"] and now.files <= files + 1:  # the one that asks for this
            return now
        assert time.monotonic() < end, f"{counts} run and wait, {now.files} files are open"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_random_clients_harm_nobody(bundle: Path, tmp_path: Path) -> None:
    """Right answers for all who behave; no slots, threads, files or memory are left behind."""
    with serving(bundle, log=tmp_path / "log") as (address, pid):
        asyncio.run(crowd(address, range(5000, 5040), at_once=40, patience_s=0.1))
        time.sleep(6)  # kept connections end after five seconds
        before = held(pid)
        quarters = []
        for start in range(0, 1000, 250):
            told = asyncio.run(
                crowd(address, range(start, start + 250), at_once=50, patience_s=3.0)
            )
            assert len(told) > 20
            assert not [wrong for wrong in told if wrong]
            quarters.append(quiet(address, pid, before.files))
        # Those for long work are kept once there was any, and the tokenizer's, one a core.
        kept = WORKERS + (os.cpu_count() or 1)
        assert max(one.threads for one in quarters) <= before.threads + kept
        growth = quarters[-1].resident_mib - quarters[1].resident_mib
        assert growth <= GROWTH_MIB, quarters


@pytest.mark.slow
def test_more_silent_connections_than_there_may_be_lock_nobody_out(
    bundle: Path, tmp_path: Path
) -> None:
    """Seven hundred hold their connections open; answers are right, and all are left in time."""
    with serving(bundle, log=tmp_path / "log") as (address, pid):
        before = held(pid)
        with contextlib.ExitStack() as opened:
            for _ in range(700):
                opened.enter_context(connect(address))
            told = asyncio.run(crowd(address, range(0), at_once=1, patience_s=0))
            assert told == [None] * 4
            quiet(address, pid, before.files, within_s=30)


def test_requests_of_all_kinds_leave_nothing_behind(bundle: Path) -> None:
    """Three hundred, each answered as its kind is; no more threads than after the first hundred."""
    with serving(bundle) as (address, pid):
        found = asyncio.run(soak(address, pid, 300, clients=6))
        assert len(found) == 4
        assert found[-1].threads <= found[1].threads
        quiet(address, pid, found[0].files)
