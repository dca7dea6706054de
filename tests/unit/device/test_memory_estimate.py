"""Whether a second model fits: what the machine or its group has, what a bundle needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from device.agent.memory import Estimate, Memory, needed_bytes, read_memory
from edgekit.bundle.reader import Bundle

GIB = 1 << 30


class FakeGraph:
    """A graph's entry, as far as it matters."""

    activation_dtype = "float16"


class FakeManifest:
    """A manifest, as far as it matters."""

    requirements = {"memory_bytes": 2 * GIB}  # noqa: RUF012 - read only
    limits = {"max_sequences": 4, "max_context": 1000}  # noqa: RUF012
    graphs = (FakeGraph(),)
    model: dict[str, Any] = {  # noqa: RUF012
        "config": {
            "num_hidden_layers": 10,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "hidden_size": 512,
        }
    }


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
        "memory.current": str(10 * GIB),
        "memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file {GIB}\n",
    }
    limited = machine(tmp_path / "a", 40 * GIB // 1024, group)
    assert read_memory(limited) == Memory(16 * GIB, 9 * GIB)
    unlimited = machine(tmp_path / "b", 40 * GIB // 1024, {**group, "memory.max": "max\n"})
    assert read_memory(unlimited).total_bytes == 64 * GIB


def test_more_slots_need_more() -> None:
    """The caches of those beyond the bundle's own number; fewer take nothing off."""
    bundle = cast("Bundle", FakeBundle())
    assert needed_bytes(bundle, 4) == needed_bytes(bundle, 1) == 2 * GIB
    slot = 2 * 10 * 2 * 64 * 2 * 1000  # keys and values, layers, heads, head_dim, bytes, context
    assert needed_bytes(bundle, 6) == 2 * GIB + 2 * slot


def test_the_estimate_says_why() -> None:
    """To the byte; a card's memory cannot be seen, so there one model goes before another comes."""
    assert Estimate(5, 5, own_memory=True).fits
    assert not Estimate(6, 5, own_memory=True).fits
    assert not Estimate(1, 5, own_memory=False).fits
    assert (
        "needs 2.00 GB, 1.00 GB are free" in Estimate(2 * 10**9, 10**9, own_memory=True).describe()
    )
    assert "card" in Estimate(1, 5, own_memory=False).describe()
