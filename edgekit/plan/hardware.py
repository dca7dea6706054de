"""Machines: what ``hardware.toml`` says of them, and what a power mode leaves of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from edgekit.errors import EdgekitError
from edgekit.plan.toml_file import fill, read_table
from edgekit.targets import TARGETS, Target

FULL_MEMORY_MHZ = 3199.0
"""Clock of Orin's LPDDR5 at its full bandwidth."""
FLOP_PER_SM_CLOCK = 2048
"""Dense FP16 with tensor cores on Orin: 170 sparse INT8 TOPS = 85 dense = 42.5 TFLOPS of FP16,
over 16 SMs at 1.3 GHz."""


@dataclass(frozen=True, slots=True)
class PowerMode:
    """One nvpmodel mode.

    Attributes:
        budget_w: Its power budget; of MAXN the module's maximum.
        gpu_mhz, memory_mhz: Highest clocks.
        texture_clusters: TPCs that are on, two SMs each.
    """

    name: str
    budget_w: float
    gpu_mhz: float
    texture_clusters: int
    memory_mhz: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine in one power mode.

    Attributes:
        target: What the memory model fits a bundle to.
        calibration: Machine whose published rates an engine's parameters were fitted on.
        bandwidth_bytes_per_s: Peak of the memory.
        fp16_flops_per_s: Dense peak of the tensor cores.
        power_w: Budget or board power: an upper bound.
        streaming_multiprocessors, gpu_mhz: 0 where unknown.
        full_gpu_mhz: ``gpu_mhz`` of the fastest mode.
        mode: Name of the power mode; empty where there is none.
        is_reference: A machine for comparison: no edgekit target.
        scenario: Where it stands, unless told otherwise.
    """

    name: str
    title: str
    target: Target
    calibration: str
    bandwidth_bytes_per_s: float
    fp16_flops_per_s: float
    power_w: float
    price_usd: float
    sources: tuple[str, ...]
    streaming_multiprocessors: int = 0
    gpu_mhz: float = 0.0
    full_gpu_mhz: float = 0.0
    mode: str = ""
    modes: tuple[PowerMode, ...] = ()
    is_reference: bool = False
    scenario: str = "edge"

    def in_mode(self, name: str) -> Machine:
        """Return the machine in a power mode.

        Raises:
            EdgekitError: It has no such mode; the message lists them.
        """
        for mode in self.modes:
            if mode.name.lower() == name.lower():
                return self._at(mode)
        known = ", ".join(mode.name for mode in self.modes)
        raise EdgekitError(
            f"{self.title} has no power mode {name!r}",
            f"Use one of: {known}" if known else "Leave --power-mode out: it has none",
        )

    def _at(self, mode: PowerMode) -> Machine:
        multiprocessors = 2 * mode.texture_clusters
        share = mode.memory_mhz / FULL_MEMORY_MHZ
        return replace(
            self,
            bandwidth_bytes_per_s=self.target.bandwidth_bytes_per_s * share,
            fp16_flops_per_s=multiprocessors * mode.gpu_mhz * 1e6 * FLOP_PER_SM_CLOCK,
            power_w=mode.budget_w,
            streaming_multiprocessors=multiprocessors,
            gpu_mhz=mode.gpu_mhz,
            mode=mode.name,
        )


@dataclass(frozen=True, slots=True)
class Scenario:
    """Where a machine stands.

    Attributes:
        utilization: Share of the time it generates at the stated rate.
        overhead: Energy drawn from the grid over what the machine takes (PUE).
    """

    title: str
    utilization: float
    overhead: float


@cache
def machines() -> dict[str, Machine]:
    """Return every machine by name, each in its fastest mode."""
    return {
        name: _machine(name, row) for name, row in read_table("hardware.toml")["machine"].items()
    }


@cache
def scenarios() -> dict[str, Scenario]:
    """Return every scenario by name."""
    rows = read_table("hardware.toml")["scenario"]
    return {name: fill(Scenario, row) for name, row in rows.items()}


def source_texts(names: tuple[str, ...]) -> dict[str, str]:
    """Return the sources of a machine's figures."""
    texts = read_table("hardware.toml")["sources"]
    return {name: texts[name] for name in names}


ALIASES = {"orin": "agx-orin-64gb", "orin-jp62": "agx-orin-64gb", "orin-32gb": "agx-orin-32gb"}
"""Build targets, and the machine each is."""


def find_machine(name: str) -> Machine:
    """Return a machine by its own name or its build target's, the target being that one.

    Raises:
        EdgekitError: There is none; the message lists them.
    """
    machine = machines().get(ALIASES.get(name, name))
    if machine is None:
        known = ", ".join([*ALIASES, *machines()])
        raise EdgekitError(f"unknown machine {name!r}", f"Use one of: {known}")
    return replace(machine, target=TARGETS[name]) if name in ALIASES else machine


def _machine(name: str, row: dict[str, Any]) -> Machine:
    values = dict(row)
    modes = tuple(fill(PowerMode, mode) for mode in values.pop("power_mode", ()))
    target = _target(name, values)
    multiprocessors = values.get("streaming_multiprocessors", 0)
    flops = multiprocessors * values.get("gpu_mhz", 0) * 1e6 * FLOP_PER_SM_CLOCK
    values = {"fp16_flops_per_s": flops, "power_w": 0, **values}
    values["sources"] = tuple(values["sources"])
    machine = fill(
        Machine,
        values,
        name=name,
        target=target,
        bandwidth_bytes_per_s=target.bandwidth_bytes_per_s,
        full_gpu_mhz=float(values.get("gpu_mhz", 0)),
        modes=modes,
        is_reference=not modes,
    )
    return machine.in_mode(modes[0].name) if modes else machine


def _target(name: str, values: dict[str, Any]) -> Target:
    """Take the target a machine names, or make one of its memory."""
    known = values.pop("target", None)
    if known is not None:
        return TARGETS[known]
    return Target(
        name,
        values["title"],
        values.pop("memory_bytes"),
        values.pop("bandwidth_bytes_per_s"),
        "float16",
        "standard",
    )
