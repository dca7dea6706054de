"""Whether a second model fits: what the machine or its group has, what a bundle needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from device.agent import memory
from device.agent.memory import Estimate, Memory, needed_bytes, read_memory, require_room
from edgekit.bundle.reader import Bundle
from edgekit.errors import NoMemoryError
from edgekit.models.exported import ExportedConfig
from edgekit.units import format_bytes

GIB = 1 << 30


class FakeGraph:
    """A graph's entry, as far as it matters."""

    activation_dtype = "float16"


class FakeTensor:
    """A tensor's entry, as far as it matters."""

    size_bytes = 7


CONFIG = ExportedConfig("llama", 10, 2, 64, 4096, 1000)


class FakeManifest:
    """A manifest, as far as it matters."""

    name = "fake"
    requirements = {"memory_bytes": 2 * GIB}  # noqa: RUF012 - read only
    limits = {"max_sequences": 4, "max_context": 1000}  # noqa: RUF012
    graphs = (FakeGraph(),)
    tensors = (FakeTensor(),)
    model: dict[str, Any] = {"config": CONFIG.to_dict()}  # noqa: RUF012


class FakeBundle:
    """A bundle, as far as it matters."""

    manifest = FakeManifest()


def machine(root: Path, available_kb: int, group: dict[str, str] | None = None) -> Path:
    """Make a tree of a machine with 64 GiB."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:       {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available_kb} kB\n"
    )
    (root / "proc/self/cgroup").write_text("0::/system.slice/edgekit-agent.service\n")
    folder = root / "sys/fs/cgroup/system.slice/edgekit-agent.service"
    folder.mkdir(parents=True)
    for name, text in (group or {}).items():
        (folder / name).write_text(text)
    return root


def test_a_fifth_stays_free(tmp_path: Path) -> None:
    """Of all memory, not of what is left."""
    found = read_memory(machine(tmp_path, 40 * GIB // 1024))
    assert found == Memory(64 * GIB, 40 * GIB)
    assert found.free_bytes == 40 * GIB - int(64 * GIB * 0.2)


def test_a_groups_limit_counts(tmp_path: Path) -> None:
    """What files of it hold can be given back; no limit is none."""
    group = {
        "memory.max": str(16 * GIB),
        "memory.high": "max\n",
        "memory.current": str(10 * GIB),
        "memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file {GIB}\n",
    }
    limited = machine(tmp_path / "a", 40 * GIB // 1024, group)
    assert read_memory(limited) == Memory(16 * GIB, 9 * GIB, is_tight=True)
    unlimited = machine(tmp_path / "b", 40 * GIB // 1024, {**group, "memory.max": "max\n"})
    assert read_memory(unlimited).total_bytes == 64 * GIB


def test_a_group_above_counts(tmp_path: Path) -> None:
    """A limit of the slice binds the services in it; so does the rate at which one is held back."""
    root = machine(tmp_path, 40 * GIB // 1024)
    slice_ = root / "sys/fs/cgroup/system.slice"
    (slice_ / "memory.max").write_text("max\n")
    (slice_ / "memory.high").write_text(f"{8 * GIB}\n")
    (slice_ / "memory.current").write_text(f"{GIB}\n")
    (slice_ / "memory.stat").write_text("anon 1\n")
    assert read_memory(root) == Memory(8 * GIB, 7 * GIB, is_tight=True)


def test_what_leaves_least_counts(tmp_path: Path) -> None:
    """After the reserve: a group with less available may leave more than the machine does."""
    group = {"memory.max": str(10 * GIB), "memory.high": "max", "memory.current": "0"}
    root = machine(tmp_path, 12 * GIB // 1024, {**group, "memory.stat": ""})
    assert read_memory(root) == Memory(64 * GIB, 12 * GIB)


def test_a_jetson_is_tight(tmp_path: Path) -> None:
    """There the fifth stays free of the only model, too; on a host it does not."""
    root = machine(tmp_path, 40 * GIB // 1024)
    assert read_memory(root).admitted_bytes == 40 * GIB
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    assert read_memory(root).admitted_bytes == 40 * GIB - int(64 * GIB * 0.2)


SLOT = 2 * 10 * 2 * 64 * 2 * 1000
"""Keys and values, layers, heads, head_dim, bytes, context."""


def test_slots_are_counted() -> None:
    """The caches of those that are asked for, also of an architecture that is not edgekit's own."""
    bundle = cast("Bundle", FakeBundle())
    assert needed_bytes(bundle, 4, "cuda") == 2 * GIB
    assert needed_bytes(bundle, 6, "cuda") == 2 * GIB + 2 * SLOT
    assert needed_bytes(bundle, 1, "tensorrt") == 2 * GIB - 3 * SLOT
    assert needed_bytes(bundle, 4, "cpu") == 2 * GIB - 1_000_000_000 + 250_000_000 + 7


@pytest.mark.parametrize(
    ("available", "slots", "said"),
    [
        (2 * GIB, 5, "Give --max-sequences 4"),
        (2 * GIB - 1, 4, "Give --max-sequences 3"),
        (2 * GIB - 4 * SLOT, 4, "End other programs, or build it with fewer bits"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, available: int, slots: int, said: str
) -> None:
    """To the byte; both figures, the caches' share, what makes it fit, and how to insist."""
    bundle = cast("Bundle", FakeBundle())
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(64 * GIB, available))
    with pytest.raises(NoMemoryError) as caught:
        require_room(bundle, slots, "cuda")
    text = str(caught.value)
    assert said in text
    assert "--no-memory-check" in text
    assert f"fake needs {format_bytes(2 * GIB + (slots - 4) * SLOT)} of memory" in text
    assert f"{format_bytes(slots * SLOT)} of it caches: {slots} of 1000 tokens" in text
    assert f"{format_bytes(available)} are available. " in text
    needed = 2 * GIB + (slots - 4) * SLOT
    monkeypatch.setattr(memory, "read_memory", lambda: Memory(64 * GIB, needed))
    require_room(bundle, slots, "cuda")
    tight = Memory(10 * GIB, needed + 2 * GIB - 1, is_tight=True)
    monkeypatch.setattr(memory, "read_memory", lambda: tight)
    with pytest.raises(NoMemoryError, match=r"2\.15 GB of which stay free"):
        require_room(bundle, slots, "cuda")


def test_the_estimate_says_why() -> None:
    """To the byte; a card's memory cannot be seen, so there one model goes before another comes."""
    assert Estimate(5, 5, own_memory=True).fits
    assert not Estimate(6, 5, own_memory=True).fits
    assert not Estimate(1, 5, own_memory=False).fits
    assert (
        "needs 2.00 GB, 1.00 GB are free" in Estimate(2 * 10**9, 10**9, own_memory=True).describe()
    )
    assert "card" in Estimate(1, 5, own_memory=False).describe()
