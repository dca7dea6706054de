"""Holding a build back: the load file, memory, patience and priority."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.contracts.load_file import STALE_S, read_busy, write_load
from edgekit.errors import EngineError
from edgekit.trt.holding import WAITING, Holding, Memory, read_memory

PLENTY = Memory(64_000_000_000, 40_000_000_000)


def rules(load_file: Path | None = None, patience_s: float | None = None) -> dict[str, Any]:
    name = None if load_file is None else str(load_file)
    return {"load_file": name, "reserve_bytes": 12_800_000_000, "patience_s": patience_s}


def test_a_load_file_says_busy_until_it_is_stale(tmp_path: Path) -> None:
    """Missing, idle, another word or old: not busy. A server that died is not waited for."""
    path = tmp_path / "load"
    assert not read_busy(path)
    assert not read_busy(tmp_path)
    write_load(path, busy=True)
    assert read_busy(path)
    assert not read_busy(path, time.time() + STALE_S + 1)
    write_load(path, busy=False)
    assert not read_busy(path)
    path.write_text("perhaps")
    assert not read_busy(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["load"]


def test_a_step_waits_while_the_server_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, goes on when the server is idle, and names again what it was at."""
    path, said, slept = tmp_path / "load", list[str](), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            write_load(path, busy=False)

    monkeypatch.setattr(time, "sleep", sleep)
    held = Holding(rules(path), said.append, lambda: PLENTY)
    held.phase("Timing tactics")
    assert held.step()
    write_load(path, busy=True)
    assert held.step()
    assert (said, len(slept)) == (["Timing tactics", WAITING, "Timing tactics"], 3)


def test_patience_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stays busy ends the build with a reason, and every later step."""
    path = tmp_path / "load"
    write_load(path, busy=True)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    held = Holding(rules(path, 5), lambda _: None, lambda: PLENTY)
    assert not held.step()
    write_load(path, busy=False)
    assert not held.step()
    assert "held back for 5 s and given up" in str(held.error)


def test_memory_under_the_reserve_ends_the_build() -> None:
    """Whatever takes it: the server is not to be starved."""
    available = [40_000_000_000, 12_799_999_999]
    held = Holding(rules(), lambda _: None, lambda: Memory(64_000_000_000, available.pop(0)))
    assert held.step()
    assert not held.step()
    assert "12.80 GB of memory are available, 12.80 GB must stay free" in str(held.error)


def test_memory_is_the_kernels_estimate(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\nHugePages: 0\n")
    assert read_memory(path) == Memory(1_024_000, 614_400)
    for text in ("MemTotal: 1000 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n"):
        path.write_text(text)
        with pytest.raises(EngineError, match="does not say how much memory"):
            read_memory(path)
    assert read_memory().total_bytes > read_memory().available_bytes > 0


def test_priority_is_the_lowest() -> None:
    """Processors and disk: what /proc and ionice(1) say of a process that lowered itself."""
    script = (
        "import os, subprocess; from edgekit.trt.holding import lower_priority; lower_priority(); "
        "print(os.getpriority(os.PRIO_PROCESS, 0)); "
        "print(subprocess.check_output(['ionice', '-p', str(os.getpid())], text=True))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["19", "idle"]
