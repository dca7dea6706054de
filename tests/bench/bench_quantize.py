"""Time the quantization kernels alone: nanoseconds per weight, against moving the same bytes.

The weight is random bf16 in memory, so neither a disk nor the page cache is in the figures. Two
baselines run in the same rounds, on as many threads: ``copy`` copies the bf16 bytes, and
``read+write`` reads a file of them from the page cache and writes a file of the packed size.
Figures are medians over interleaved rounds; ``cpu_ns_per_weight`` sums over threads and suffers
less from other work on the machine.

    python tests/bench/bench_quantize.py --rows 4096 --columns 4096 > quantize.json
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.decode import bf16_to_float32
from edgekit.quant.rtn import STRIP_ROWS, quantize_weight
from edgekit.quant.scheme import QuantScheme

SCHEMES = (
    *(QuantScheme(4, group, "absmax") for group in (128, 64, 32)),
    *(QuantScheme(4, group, "mse") for group in (128, 64, 32)),
    QuantScheme(8, 0, "absmax"),
    QuantScheme(8, 0, "mse"),
)


@dataclass(frozen=True)
class MemoryWeight:
    """A bf16 weight in memory, as :class:`edgekit.checkpoint.lazy.LazyTensor`."""

    bits: npt.NDArray[np.uint16]
    name: str = "bench.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    @property
    def stored_bytes(self) -> int:
        return self.bits.nbytes

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        return bf16_to_float32(self.bits[start:stop])

    def bf16_rows(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        return self.bits[start:stop]


def random_weight(rows: int, columns: int) -> MemoryWeight:
    """Return a normal weight of standard deviation 0.02, as trained linears have."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
    return MemoryWeight((values.view(np.uint32) >> 16).astype(np.uint16))


def copy(weight: MemoryWeight, threads: int) -> None:
    """Copy the bf16 bytes, a strip at a time."""
    target = np.empty_like(weight.bits)

    def work(start: int) -> None:
        target[start : start + STRIP_ROWS] = weight.bits[start : start + STRIP_ROWS]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(0, len(target), STRIP_ROWS)))


def read_and_write(source: Path, target: Path, weight: MemoryWeight) -> None:
    """Read the file of the weight's bytes and write a quarter as many, on one thread."""
    strip = STRIP_ROWS * weight.shape[1] * 2
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while block := reader.read(strip):
            writer.write(block[: len(block) // 4])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(weight: MemoryWeight, threads: int, rounds: int, work: Path) -> dict[str, Any]:
    """Run every candidate once a round; the first round, which compiles, is reported apart."""
    source, target = work / "source", work / "target"
    source.write_bytes(weight.bits.tobytes())
    candidates: dict[str, Callable[[], object]] = {
        "copy": lambda: copy(weight, threads),
        "read+write": lambda: read_and_write(source, target, weight),
    }
    for scheme in SCHEMES:
        candidates[f"{scheme.label}-{scheme.scale_search}"] = functools.partial(
            quantize_weight, weight, scheme, threads=threads
        )
    first = {name: timed(run)[0] for name, run in candidates.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(timed(run))
    baseline = {name: median(wall for wall, _ in times[name]) for name in ("copy", "read+write")}
    rows = {}
    for name, runs in times.items():
        wall = median(wall for wall, _ in runs)
        rows[name] = {
            "wall_ns_per_weight": round(wall / weight.bits.size * 1e9, 3),
            "cpu_ns_per_weight": round(median(cpu for _, cpu in runs) / weight.bits.size * 1e9, 3),
            "times_copy": round(wall / baseline["copy"], 2),
            "times_read_write": round(wall / baseline["read+write"], 2),
            "first_s": round(first[name], 3),
        }
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096, help="N (default: 4096)")
    parser.add_argument("--columns", type=int, default=4096, help="K (default: 4096)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    weight = random_weight(options.rows, options.columns)
    with tempfile.TemporaryDirectory() as work:
        rows = measure(weight, options.threads, options.rounds, Path(work))
    json.dump({"settings": vars(options), "results": rows}, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
