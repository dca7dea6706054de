"""Whether a second model fits beside the first: an estimate, and what it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.bundle.reader import Bundle
from edgekit.contracts.manifest import Manifest
from edgekit.targets import MEMORY_RESERVE_FRACTION
from edgekit.units import format_bytes

_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this machine, or of the control group that the process is held to.

    Attributes:
        total_bytes: All of it.
        available_bytes: What can be had without swapping.
    """

    total_bytes: int
    available_bytes: int

    @property
    def free_bytes(self) -> int:
        """What a model may take: a fifth of all stays free against out-of-memory kills."""
        return self.available_bytes - int(self.total_bytes * MEMORY_RESERVE_FRACTION)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Whether a model fits beside what runs.

    Attributes:
        needed_bytes: What the bundle's manifest says, for the slots that are asked for.
        free_bytes: What there is, after the reserve.
        own_memory: The model's memory is the machine's; false for a card with its own.
    """

    needed_bytes: int
    free_bytes: int
    own_memory: bool

    @property
    def fits(self) -> bool:
        """Whether it may be loaded beside the other; never where its memory cannot be seen."""
        return self.own_memory and self.needed_bytes <= self.free_bytes

    def describe(self) -> str:
        """Return it in a sentence."""
        if not self.own_memory:
            return "the model lives in a card's memory, of which nothing is known"
        needed, free = format_bytes(self.needed_bytes), format_bytes(max(self.free_bytes, 0))
        return f"the model needs {needed}, {free} are free after the reserve"


def needed_bytes(bundle: Bundle, slots: int) -> int:
    """Return the memory that a bundle takes.

    The manifest's figure is of its own number of sequences; caches of more are added, those of
    fewer are not taken off. Its allowance for the engine (1 GB) is counted though both share one.

    Args:
        bundle: It.
        slots: Cache slots it is loaded with.
    """
    manifest = bundle.manifest
    more = max(slots - manifest.limits["max_sequences"], 0)
    return int(manifest.requirements["memory_bytes"]) + more * _slot_bytes(manifest)


def _slot_bytes(manifest: Manifest) -> int:
    """Return the bytes of one slot's keys and values."""
    config: dict[str, Any] = manifest.model["config"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    places = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_dim
    width = 4 if any(g.activation_dtype == "float32" for g in manifest.graphs) else 2
    return int(places) * width * manifest.limits["max_context"]


def read_memory(root: Path = _ROOT) -> Memory:
    """Read what there is; a control group's limit counts where it is smaller.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    kilobytes = {}
    for line in (root / "proc/meminfo").read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    machine = Memory(kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024)
    group = _group_memory(root)
    if group is None or group.available_bytes >= machine.available_bytes:
        return machine
    return group


def _group_memory(root: Path) -> Memory | None:
    """Return the memory of the process's control group (version 2), if it is limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        (path,) = (line.removeprefix("0::") for line in lines if line.startswith("0::"))
        folder = root / "sys/fs/cgroup" / path.lstrip("/")
        limit = int((folder / "memory.max").read_text("ascii"))
        used = int((folder / "memory.current").read_text("ascii"))
        stat = (folder / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):  # no such groups, or "max": no limit
        return None
    pairs = dict(line.split() for line in stat)
    # Pages of files are given back when memory is short.
    used -= int(pairs.get("inactive_file", 0)) + int(pairs.get("active_file", 0))
    return Memory(limit, limit - used)
