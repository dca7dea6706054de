"""A bundle that does not fit is refused before it is loaded; the estimate holds on real loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agent_cases import agent, wait_for_event
from serve_cases import point, renamed, running

from device.agent import memory
from device.agent.loading import load_model, open_resolved
from device.agent.memory import Memory, needed_bytes
from device.agent.options import LoadOptions
from edgekit.errors import EngineError, NoMemoryError

FULL = """
import sys
from pathlib import Path
from device.agent.loading import load_model, open_resolved
from device.agent.options import LoadOptions
slots = int(sys.argv[2])
model = load_model(open_resolved(Path(sys.argv[1])), LoadOptions(max_sequences=slots, threads=1))
last = model.session.max_context - 1
for slot in range(slots):
    model.session.prefill(slot, [5] * last)
model.session.decode(range(slots), [5] * slots, [last] * slots)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
"""Fills all caches; the whole process' peak, in KiB."""
TOO_MANY = 200_000
"""Slots, whose caches are beyond any machine that runs the tests."""


@pytest.mark.parametrize("slots", [1, 8, 64])
def test_the_estimate_is_an_upper_bound(bundle: Path, slots: int) -> None:
    """Measured with full caches, Python and all libraries in it; and it is no wild one."""
    command = [sys.executable, "-c", FULL, str(bundle), str(slots)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    measured = int(done.stdout) * 1024
    needed = needed_bytes(open_resolved(bundle), slots, "cpu")
    print(f"{slots} slots: needs {needed / 1e6:.0f} MB, took {measured / 1e6:.0f}")  # noqa: T201
    assert measured <= needed <= measured + 250_000_000


def test_the_command_refuses_and_can_be_told_to_try(bundle: Path) -> None:
    """One error with figures and remedy, before the bytes are checked; told to, it tries."""
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--port", "0"]
    command += ["--max-sequences", str(TOO_MANY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == EngineError.exit_code
    assert f"of it caches: {TOO_MANY} of 512 tokens" in done.stderr
    assert "--no-memory-check" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [*command, "--no-memory-check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == EngineError.exit_code
    assert "of memory (" not in done.stderr


def test_the_agents_first_load_is_refused(bundle: Path, tmp_path: Path) -> None:
    """It says so in its log and stays up without a model."""
    point(tmp_path / "current", bundle)
    with agent(tmp_path, f"max_sequences = {TOO_MANY}") as found:
        wait_for_event(found, "model_failed")
        (failed,) = [event for event in found.events() if event["event"] == "model_failed"][:1]
        assert failed["error"] == "NoMemoryError"
        assert "are available" in failed["message"]
        assert found.get("/readyz").json()["state"] == "no model"
        assert found.get("/healthz").status_code == 200


@pytest.mark.parametrize("seen", ["before", "after"])
def test_one_that_does_not_fit_gives_way_to_the_old_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """Seen while the old one serves, it goes on; seen once it is gone, it is loaded again."""
    other = renamed(bundle, tmp_path / "other", "other")
    # Where all that the old one gives back would do, its going has to be waited for.
    reserved = seen == "before"
    with running(bundle, log=str(tmp_path / "log")) as server:
        monkeypatch.setattr(memory, "read_memory", lambda: Memory(1 << 34, 100, reserved))
        assert server.swap(other) == "failed"
        assert server.models.current is not None
        assert server.models.current.bundle.path == bundle
    text = (tmp_path / "log").read_text()
    assert '"error": "NoMemoryError"' in text
    assert ("model_restore" in text, "model_freed" in text) == (not reserved, not reserved)
    assert ("are given back by the model before it" in text) == reserved


def test_the_flag_loads_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused for want of memory loads where the check is off."""
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(1 << 34, 100))
    opened = open_resolved(bundle)
    with pytest.raises(NoMemoryError, match="100 B are available"):
        load_model(opened, LoadOptions(max_sequences=1, threads=1))
    model = load_model(opened, LoadOptions(max_sequences=1, threads=1, memory_check=False))
    model.session.close()
