"""The parts of a hardware run: what is missing, the engine, the gate, the speeds.

Each returns what the report holds of it. They know nothing of files or of the command line.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.reader import Bundle
from edgekit.engine.session import InferenceSession
from edgekit.engine.tensorrt import open_tensorrt
from edgekit.errors import EdgekitError, EngineError
from edgekit.evaluate.golden import check_golden
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.models.config import ModelConfig
from edgekit.models.exported import stored_config
from edgekit.pipeline.verify import ENGINE_LIMITS
from edgekit.power import read_machine
from edgekit.trt import device_build
from edgekit.trt.beside import build_peak_bytes
from edgekit.trt.engine_cache import EngineCache
from edgekit.trt.holding import read_memory
from edgekit.trt.l4t import require_machine

PACKAGES = (
    ("tensorrt", "TensorRT's Python module", "sudo apt install python3-libnvinfer, and a venv made "
     "with --system-site-packages"),
    ("cuda.bindings", "CUDA's Python bindings", "pip install 'edgekit[tensorrt]'"),
    ("onnx", "onnx, which the engine build needs", "pip install 'edgekit[tensorrt]'"),
)  # fmt: skip
WARMUP_STEPS = 4
PREFILL_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that the run needs and this machine lacks, and how to get it."""

    what: str
    remedy: str


def find_missing(bundle: Bundle | None, *, anywhere: bool) -> list[Missing]:
    """Return what keeps this machine from a run; nothing is built or loaded for it.

    Args:
        bundle: What is to run; None if there is none, which the caller says.
        anywhere: Let a machine that is no Jetson pass.
    """
    missing = []
    state = read_machine().to_dict()
    if state["kind"] != "jetson" and not anywhere:
        missing.append(
            Missing(
                f"a Jetson: this is {platform.machine()}, {state['gpu_name'] or 'no NVIDIA GPU'}",
                "Run it on an AGX Orin; --anywhere takes another GPU with TensorRT for a trial",
            )
        )
    for module, what, remedy in PACKAGES:
        if not _installed(module):
            missing.append(Missing(what, remedy))
    if bundle is not None and _installed("tensorrt"):
        missing += _missing_for(bundle)
    return missing


def _missing_for(bundle: Bundle) -> list[Missing]:
    try:
        machine = device_build.find_machine()
        if not machine.runs_engines:
            raise EngineError("TensorRT finds no GPU to run on", "Look at `edgekit doctor`")
        require_machine(bundle.manifest.requirements, machine.l4t, machine.builder)
        device_build.engine_plan(bundle.manifest)
    except EdgekitError as error:
        return [Missing(error.message, error.remedy)]
    return []


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def describe_software() -> dict[str, Any]:
    """Return what an engine and its speed depend on, beside the machine's state."""
    machine = device_build.find_machine()
    versions = {name: _version(name) for name in ("edgekit", "cuda-bindings", "onnx", "numpy")}
    builder = machine.builder
    return {
        "tensorrt": {"name": builder.name, "version": builder.version, "sm": builder.sm},
        "l4t": machine.l4t,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return the machine as it stands: power mode, clocks, throttling, memory, temperatures."""
    machine, memory = read_machine(), read_memory()
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    celsius = dict(filter(None, map(_zone, zones)))
    return {
        "machine": machine.to_dict(),
        "described": machine.describe(),
        "warnings": machine.warnings(),
        "available_bytes": memory.available_bytes,
        "total_bytes": memory.total_bytes,
        "celsius": celsius,
    }


def _zone(folder: Path) -> tuple[str, float] | None:
    """Return a thermal zone's name and temperature; None where its sensor is off."""
    try:
        name = (folder / "type").read_text("utf-8").strip()
        return name, int((folder / "temp").read_text("ascii")) / 1000
    except (OSError, ValueError):
        return None


@contextmanager
def least_available(found: dict[str, int], every_s: float = 0.2) -> Iterator[None]:
    """Note under ``taken_bytes`` how far the machine's available memory fell meanwhile."""
    first = least = read_memory().available_bytes
    done = threading.Event()

    def watch() -> None:
        nonlocal least
        while not done.wait(every_s):
            least = min(least, read_memory().available_bytes)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found["taken_bytes"] = first - min(least, read_memory().available_bytes)


def build_engine(bundle: Bundle, cache: EngineCache, progress: Any) -> dict[str, Any]:
    """Build the bundle's engine, or find it: how long, how much memory, what it is."""
    machine = device_build.find_machine()
    taken: dict[str, int] = {}
    start_s = time.perf_counter()
    with least_available(taken):
        engine = device_build.obtain_engine(bundle, cache, machine, progress)
        engine.release()
    return {
        "built": engine.built,
        "seconds": round(time.perf_counter() - start_s, 3),
        "memory_taken_bytes": taken["taken_bytes"],
        "memory_planned_bytes": build_peak_bytes(bundle),
        "size_bytes": engine.size_bytes,
        "damage": engine.damage,
        **engine.facts,
    }


@contextmanager
def opened(bundle: Bundle, cache: EngineCache, sequences: int) -> Iterator[InferenceSession]:
    """Open the engine that is in the cache, and close it again."""
    config = stored_config(bundle.manifest.model["config"])
    if not isinstance(config, ModelConfig):
        raise EngineError("bundles built with --exporter optimum do not run on TensorRT")
    session = open_tensorrt(bundle, config, max_sequences=sequences, cache=cache.folder)
    try:
        yield session
    finally:
        session.close()


def project(bundle: Bundle, contexts: Sequence[int], batches: Sequence[int]) -> dict[str, Any]:
    """Return what `edgekit plan` expects of the bundle, to stand beside what is measured.

    Raises:
        EngineError: It says nothing.
    """
    command = [sys.executable, "-m", "edgekit", "plan", str(bundle.path), "--json"]
    command += ["--target", str(bundle.manifest.target["name"])]
    fitting = [c for c in contexts if c <= bundle.manifest.limits["max_context"]]
    for option, numbers in (("--context", fitting), ("--batch", batches)):
        command += [part for number in numbers for part in (option, str(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        plan = json.loads(done.stdout)["plans"][0]
    except (ValueError, KeyError, IndexError) as error:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise EngineError(f"edgekit plan gives no rates: {said}") from error
    return {"power_mode": plan["power_mode"], "rates": plan["rates"]}


def run_gate(bundle: Bundle, session: InferenceSession) -> dict[str, Any]:
    """Feed the golden sequences and compare log-probabilities with the recorded ones."""
    return check_golden(session, GoldenSet.from_dict(bundle.golden()), ENGINE_LIMITS).to_dict()


def time_session(
    session: InferenceSession, contexts: Sequence[int], batches: Sequence[int], steps: int
) -> list[dict[str, Any]]:
    """Time prefill and decode behind each context, in each batch.

    Args:
        session: An engine with slots for the largest batch.
        contexts: Tokens that are prefilled, and held after the last decoded one.
        batches: Sequences decoded at once.
        steps: Decode steps that are timed.

    Returns:
        A row each; ``status`` says ``not run`` where the context does not fit.
    """
    return [_time_row(session, context, batch, steps) for batch in batches for context in contexts]


def _time_row(session: InferenceSession, context: int, batch: int, steps: int) -> dict[str, Any]:
    row: dict[str, Any] = {"batch": batch, "context": context}
    first = context - WARMUP_STEPS - steps
    if context > session.max_context:
        reason = f"the bundle's context is {session.max_context}"
        return {**row, "status": "not run", "reason": reason}
    if first < 1:
        reason = f"{WARMUP_STEPS + steps} steps take more than {context} tokens"
        return {**row, "status": "not run", "reason": reason}
    random = np.random.default_rng(0)
    tokens = random.integers(0, session.vocab_size, context).tolist()
    prefills = []
    for round_number in range(PREFILL_ROUNDS + 1):
        start_s = time.perf_counter()
        session.prefill(0, tokens)
        if round_number:  # the first settles shapes
            prefills.append(time.perf_counter() - start_s)
    for slot in range(1, batch):
        session.prefill(slot, tokens)
    slots, taken = list(range(batch)), []
    for step in range(WARMUP_STEPS + steps):
        start_s = time.perf_counter()
        session.decode(slots, [tokens[step]] * batch, [first + step] * batch)
        taken.append(time.perf_counter() - start_s)
    timed = taken[WARMUP_STEPS:]
    for slot in slots:
        session.release(slot)
    return {
        **row,
        "status": "passed",
        "prefill_tokens_per_s": round(context / statistics.median(prefills), 3),
        "decode_tokens_per_s": round(batch * steps / sum(timed), 3),
        "step_ms_median": round(1000 * statistics.median(timed), 4),
        "step_ms_95": round(1000 * float(np.quantile(timed, 0.95)), 4),
        "step_ms_worst": round(1000 * max(timed), 4),
        "first_step_ms": round(1000 * taken[0], 4),
        "cuda_graphs": int(getattr(session, "captured", 0)),
    }
