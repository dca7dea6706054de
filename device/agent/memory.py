"""Whether a model fits the memory there is: an estimate, and what it was made from.

Two questions with two answers. May a second model be loaded *beside* the first? Only if a fifth of
all memory stays free: there is another way. May a model be loaded *at all*? On a Jetson, and in a
control group with a limit, only if the fifth stays free, too: what takes more is killed, and a
Jetson's GPU takes from the same memory, which is never swapped. On another machine it has to fit
what is available: the kernel counts that without swapping, so a model that needs more would swap
or starve others, while keeping a fifth of a workstation idle would protect nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.bundle.reader import Bundle
from edgekit.contracts.manifest import Manifest
from edgekit.errors import NoMemoryError
from edgekit.models.exported import stored_config
from edgekit.plan.memory import RUNTIME_ALLOWANCE_BYTES
from edgekit.power import Jetson, read_machine
from edgekit.targets import MEMORY_RESERVE_FRACTION
from edgekit.trt.holding import read_memory as read_meminfo
from edgekit.units import format_bytes

CPU_RUNTIME_BYTES: Final = 250_000_000
"""ONNX Runtime, tokenizer and Python on a CPU, in the place of the manifest's allowance for CUDA.
Measured beyond weights, caches and activations (x86-64, ONNX Runtime 1.24): 55 MB for the tiny
example, 240 MB at the peak of loading a 0.5B model, its largest tensor among them."""
_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this machine, or of the control group that the process is held to.

    Attributes:
        total_bytes: All of it.
        available_bytes: What can be had without swapping.
        is_tight: Whether taking all of it ends in a kill.
    """

    total_bytes: int
    available_bytes: int
    is_tight: bool = False

    @property
    def reserve_bytes(self) -> int:
        """A fifth of all, which stays free against out-of-memory kills."""
        return int(self.total_bytes * MEMORY_RESERVE_FRACTION)

    @property
    def free_bytes(self) -> int:
        """What a model beside another may take."""
        return self.available_bytes - self.reserve_bytes

    @property
    def admitted_bytes(self) -> int:
        """What a model that is the only one may take."""
        return self.free_bytes if self.is_tight else self.available_bytes


@dataclass(frozen=True, slots=True)
class Estimate:
    """Whether a model fits beside what runs.

    Attributes:
        needed_bytes: See ``needed_bytes`` below.
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


def needed_bytes(bundle: Bundle, slots: int, provider: str) -> int:
    """Return the memory that a bundle takes at most; measured, it takes less.

    The manifest's figure is of its own number of sequences, and has an allowance for CUDA.

    Args:
        bundle: It.
        slots: Cache slots it is loaded with.
        provider: Where it runs.
    """
    manifest = bundle.manifest
    needed = int(manifest.requirements["memory_bytes"])
    if slots != manifest.limits["max_sequences"]:
        needed += (slots - manifest.limits["max_sequences"]) * slot_bytes(manifest)
    if provider != "cpu":
        return needed
    largest = max(tensor.size_bytes for tensor in manifest.tensors)
    return needed - RUNTIME_ALLOWANCE_BYTES + CPU_RUNTIME_BYTES + largest


def slot_bytes(manifest: Manifest) -> int:
    """Return the bytes of one slot's keys and values."""
    config = stored_config(manifest.model["config"])
    places = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    width = 4 if any(g.activation_dtype == "float32" for g in manifest.graphs) else 2
    return places * width * int(manifest.limits["max_context"])


def require_room(bundle: Bundle, slots: int, provider: str, given_back_bytes: int = 0) -> None:
    """Refuse a bundle that needs more memory than it may take.

    Args:
        bundle: It.
        slots: Cache slots it is loaded with.
        provider: Where it runs; in the machine's own memory.
        given_back_bytes: What another model that goes before gives back at most.

    Raises:
        NoMemoryError: It does; the message has both figures, the remedy what makes it fit.
    """
    memory, needed = read_memory(), needed_bytes(bundle, slots, provider)
    over = needed - memory.admitted_bytes - given_back_bytes
    if over <= 0:
        return
    one, limits = slot_bytes(bundle.manifest), bundle.manifest.limits
    gained = ""
    if given_back_bytes:
        gained = f" and {format_bytes(given_back_bytes)} are given back by the model before it"
    kept = f", {format_bytes(memory.reserve_bytes)} of which stay free" if memory.is_tight else ""
    fitting = slots - -(-over // one)
    advice = "End other programs, or build it with fewer bits or a smaller --max-context"
    if fitting > 0:
        advice = f"Give --max-sequences {fitting} (max_sequences of [serve]), or end other programs"
    raise NoMemoryError(
        f"{bundle.manifest.name} needs {format_bytes(needed)} of memory "
        f"({format_bytes(slots * one)} of it caches: {slots} of {limits['max_context']} tokens), "
        f"{format_bytes(max(memory.available_bytes, 0))} are available{gained}{kept}",
        f"{advice}; --no-memory-check (memory_check of [serve]) loads it all the same",
    )


def read_memory(root: Path = _ROOT) -> Memory:
    """Read what there is; the control group counts that leaves least.

    Args:
        root: Where ``proc`` and ``sys`` are.

    Raises:
        EngineError: The kernel does not say.
    """
    found = read_meminfo(root / "proc/meminfo")
    tight = isinstance(read_machine(root), Jetson)
    machine = Memory(found.total_bytes, found.available_bytes, is_tight=tight)
    return min([machine, *_groups(root)], key=lambda memory: memory.free_bytes)


def _groups(root: Path) -> list[Memory]:
    """Return the memory of the process's control group and those above it (version 2)."""
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
        (path,) = (line.removeprefix("0::") for line in lines if line.startswith("0::"))
    except (OSError, ValueError):  # no such groups
        return []
    top = root / "sys/fs/cgroup"
    folder = top / path.lstrip("/")
    found = (_group(one) for one in (folder, *folder.parents) if one.is_relative_to(top))
    return [memory for memory in found if memory is not None]


def _group(folder: Path) -> Memory | None:
    """Return the memory of a control group, if it is limited.

    Beyond ``memory.high`` a group is held back until it hardly runs, beyond ``memory.max`` killed.
    """
    try:
        said = [(folder / f"memory.{name}").read_text("ascii").strip() for name in ("max", "high")]
        used = int((folder / "memory.current").read_text("ascii"))
        stat = (folder / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):  # the root has none
        return None
    limits = [int(limit) for limit in said if limit != "max"]
    if not limits:
        return None
    pairs = dict(line.split() for line in stat)
    # Pages of files are given back when memory is short.
    used -= int(pairs.get("inactive_file", 0)) + int(pairs.get("active_file", 0))
    return Memory(min(limits), min(limits) - used, is_tight=True)
