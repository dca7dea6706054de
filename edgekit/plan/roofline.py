"""Time of a decode step and of a prompt: one physical model, a few parameters an engine.

A step streams its bytes at a share of the memory's bandwidth and spends a fixed time in every
layer. Each further sequence of a batch adds its cache, its arithmetic and a fixed time a layer;
a prompt adds its arithmetic. The terms are added, not overlapped: kernels of one stream run one
after another. Equations and the comparison with published rates: ``docs/planning.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from edgekit.errors import EdgekitError
from edgekit.plan.hardware import Machine, machines
from edgekit.plan.toml_file import fill, read_table
from edgekit.plan.workload import Workload

ENGINES = ("edge-llm", "mlc", "llama.cpp")
DEFAULT_ENGINE = "edge-llm"
COMMON = "agx-orin-64gb"
"""The machine most rates are published of: its parameters stand in for those of others."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine's parameters on the machine they were fitted on.

    Attributes:
        bandwidth_efficiency: Share of the peak bandwidth that a step's bytes stream at.
        layer_s: Fixed time of a layer and step, at the calibration machine's GPU clock.
        compute_efficiency: Share of peak FP16 in a prompt; 0 where no row was published.
        sequence_efficiency: That share for a batch's further sequences; 0 likewise.
        sequence_layer_s: Fixed time of a layer for each further sequence.
        borrows_batch: These two are the AGX Orin 64GB's: no batch is published of its own machine.
    """

    name: str
    calibration: str
    bandwidth_efficiency: float
    layer_s: float
    compute_efficiency: float = 0.0
    sequence_efficiency: float = 0.0
    sequence_layer_s: float = 0.0
    borrows_batch: bool = False

    def bandwidth(self, machine: Machine) -> float:
        """Return the bytes a second a step streams: the memory's share, or what the SMs can ask.

        Slower clocks and fewer SMs ask for less than the memory gives. What an SM asks for in a
        clock is known from one published rate.
        """
        rate = machine.bandwidth_bytes_per_s * self.bandwidth_efficiency
        if not machine.streaming_multiprocessors:
            return rate
        clocks = machine.streaming_multiprocessors * machine.gpu_mhz * 1e6
        return min(rate, sm_bytes_per_clock() * clocks)

    def fixed_s(self, machine: Machine, layers: int) -> float:
        """Return the fixed time of a step; it stretches as the GPU's clock falls."""
        return layers * self.layer_s * _stretch(self, machine)

    def decode_step_s(self, work: Workload, machine: Machine, batch: int, context: int) -> float:
        """Return the seconds of one decode step of ``batch`` sequences.

        Raises:
            EdgekitError: More than one sequence, and the engine has no published batch.
        """
        moved = work.decode_bytes(batch, context) / self.bandwidth(machine)
        step = moved + self.fixed_s(machine, work.layers)
        if batch == 1:
            return step
        if not self.sequence_efficiency:
            raise EdgekitError(
                f"no rate of {self.name} with more than one sequence is published for any Orin",
                f"Leave --batch out, or use --engine {DEFAULT_ENGINE}",
            )
        flops = work.decode_flops(1, 0) / (self.sequence_efficiency * machine.fp16_flops_per_s)
        layers = work.layers * self.sequence_layer_s * _stretch(self, machine)
        return step + (batch - 1) * (flops + layers)

    def prefill_s(self, work: Workload, machine: Machine, tokens: int) -> float | None:
        """Return the seconds of a prompt; None where no prompt's rate is published."""
        if not self.compute_efficiency:
            return None
        compute = work.prefill_flops(tokens) / (self.compute_efficiency * machine.fp16_flops_per_s)
        moved = work.weight_bytes / self.bandwidth(machine)
        return compute + moved + self.fixed_s(machine, work.layers)


def find_engine(name: str, calibration: str) -> tuple[Engine, bool]:
    """Return an engine's parameters for a machine, and whether they are that machine's own.

    Raises:
        EdgekitError: There is no such engine.
    """
    table = read_table("engines.toml")
    rows = table["engine"].get(name)
    if rows is None:
        raise EdgekitError(f"unknown engine {name!r}", f"Use one of: {', '.join(ENGINES)}")
    own = calibration in rows
    used = calibration if own else COMMON
    engine = fill(Engine, rows[used], name=name, calibration=used)
    common = rows[COMMON]
    if not engine.sequence_efficiency and "sequence_efficiency" in common:
        engine = replace(
            engine,
            sequence_efficiency=common["sequence_efficiency"],
            sequence_layer_s=common["sequence_layer_s"],
            borrows_batch=True,
        )
    return engine, own


@cache
def sm_bytes_per_clock() -> float:
    """Return the bytes of memory one SM asks for in a clock."""
    return float(read_table("engines.toml")["sm_bytes_per_clock"])


def _stretch(engine: Engine, machine: Machine) -> float:
    """Return how much longer a fixed time is than where it was fitted; 1 for unknown clocks."""
    if not machine.gpu_mhz:
        return 1.0
    return machines()[engine.calibration].full_gpu_mhz / machine.gpu_mhz
