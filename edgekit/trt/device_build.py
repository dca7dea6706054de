"""A bundle's engine for this machine: found in the cache, or built in a process of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.bundle.verify import check_digests
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.contracts.manifest import Manifest
from edgekit.errors import EngineError, GraphError, MissingExtraError
from edgekit.progress import SILENT, Progress
from edgekit.trt.beside import Beside
from edgekit.trt.client import WORKER, ask_builder
from edgekit.trt.engine_cache import CachedEngine, EngineCache, EngineKey
from edgekit.trt.l4t import read_l4t, require_machine
from edgekit.trt.module import RTX_SMS, BuilderInfo, find_builder, gpu_sm
from edgekit.worker_process import Remedies

_REMEDIES = Remedies(
    killed="Nothing was changed. Free memory (stop what else runs), or build the bundle with a "
    "smaller --max-context",
    failed="Nothing was changed. Free memory and run the same command again, or run the bundle "
    "with --provider cpu",
)
_FACTS = ("attention", "profiles", "weights_bytes", "stored_bytes", "layers")
"""What a sidecar says of a build, of a worker's answer."""


@dataclass(frozen=True, slots=True)
class _Files:
    """Where a builder writes."""

    engine: Path
    timings: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What builds and runs engines here.

    Attributes:
        builder: TensorRT, or where there is no GPU TensorRT-RTX for a trial.
        l4t: Release of the Jetson's L4T; None for no Jetson.
    """

    builder: BuilderInfo
    l4t: str | None

    @property
    def runs_engines(self) -> bool:
        """Whether what is built here runs here; TensorRT-RTX builds without a GPU, too."""
        return self.builder.name == "TensorRT" or gpu_sm() == self.builder.sm


def find_machine() -> Machine:
    """Return what this machine builds engines with.

    Raises:
        EngineError: Nothing, or L4T does not say its release.
    """
    try:
        builder = find_builder()
    except MissingExtraError as error:
        raise EngineError(
            "this machine has no TensorRT with a GPU, and no TensorRT-RTX for a trial",
            "On a Jetson: `apt install python3-libnvinfer`, and a venv made with "
            "--system-site-packages; elsewhere: pip install 'edgekit[host,trt-check]'",
        ) from error
    sm = gpu_sm()
    if builder.name == "TensorRT-RTX" and sm in RTX_SMS:
        builder = replace(builder, sm=sm)  # for the GPU that is there, not the checks' one
    return Machine(builder, read_l4t())


def engine_plan(manifest: Manifest) -> EnginePlan:
    """Return a bundle's one engine plan.

    Raises:
        EngineError: It has none.
    """
    if not manifest.engine_plans:
        raise EngineError(
            "the bundle has no engine plan",
            "Build it again with this edgekit and --target orin or orin-jp62",
        )
    return EnginePlan.from_dict(manifest.engine_plans[0])


def engine_key(manifest: Manifest, plan: EnginePlan, machine: Machine) -> EngineKey:
    """Return what a bundle's engine depends on, on a machine."""
    paths = {graph.name: graph.path for graph in manifest.graphs}
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    weights = canonical_bytes({entry.name: entry.sha256 for entry in manifest.tensors})
    builder = machine.builder
    return EngineKey(
        graph_sha256=digests[paths[plan.graph]],
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        plan=plan.to_dict(),
        module=builder.module,
        version=builder.version,
        sm=builder.sm,
        l4t=machine.l4t or "",
    )


def obtain_engine(
    bundle: Bundle,
    cache: EngineCache,
    machine: Machine,
    progress: Progress = SILENT,
    *,
    digests: bool = True,
    stand_in: bool = False,
    beside: Beside | None = None,
    command: Sequence[str] = WORKER,
) -> CachedEngine:
    """Return a bundle's engine for a machine, from the cache or built into it.

    Args:
        bundle: An opened bundle.
        cache: Where engines are kept.
        machine: This one.
        progress: Told about a stage ``engine``, and ``digests`` before a build.
        digests: Check every byte of the bundle before a build.
        stand_in: Where the build fails, return an engine of the same graph and weights that is
            there, built by another plan or under another L4T, with a ``warning``.
        beside: How to build beside a server; None lets the build take what it needs.
        command: The worker; tests give another.

    Raises:
        EngineError: The machine is not the bundle's, memory does not suffice beside a server, or
            the builder fails, is killed or gives up; the cache is as it was.
        GraphError: The builder refuses the graph.
        DigestMismatchError: The bundle is damaged.
        StorageError: The cache cannot be written.
        MissingExtraError: An engine must be built and onnx is missing.
    """
    require_machine(bundle.manifest.requirements, machine.l4t, machine.builder)
    plan = engine_plan(bundle.manifest)
    key = engine_key(bundle.manifest, plan, machine)

    def make(path: Path) -> Mapping[str, Any]:
        _require_onnx(key, cache)
        if digests:
            check_digests(bundle, threads=len(os.sched_getaffinity(0)), progress=progress)
        progress.start("engine", 0)
        files = _Files(path, cache.timings(key))
        if beside is None:
            return _build(bundle, plan, machine.builder, files, {}, command, progress)
        with beside.turn(bundle, cache.folder) as rules:
            more = {"beside": rules}
            return _build(bundle, plan, machine.builder, files, more, command, progress)

    try:
        engine = cache.obtain(key, make)
    except (EngineError, GraphError) as error:
        found = cache.stand_in(key) if stand_in else None
        if found is None:
            raise
        engine = found
        engine.warning = (
            f"the engine could not be built ({error.message}): one of the same graph and weights "
            "that was built for another plan or L4T runs instead"
        )
    if not engine.built and not engine.warning:  # else its build has begun the stage
        progress.start("engine", 0)
    progress.finish(describe_engine(engine, machine))
    return engine


def describe_engine(engine: CachedEngine, machine: Machine) -> str:
    """Return one line about an engine for a person."""
    builder = machine.builder
    how = "built" if engine.built else "found"
    again = f" again ({engine.damage})" if engine.damage else ""
    if engine.warning:
        return engine.warning
    trial = "" if machine.runs_engines else ", a trial: there is no GPU to run it"
    return f"{how}{again} by {builder.name} {builder.version} for SM {builder.sm}{trial}"


def _build(
    bundle: Bundle,
    plan: EnginePlan,
    builder: BuilderInfo,
    files: _Files,
    more: Mapping[str, Any],
    command: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    from edgekit.trt.compile_check import require_in_place  # noqa: PLC0415 - imports onnx

    graphs = {graph.name: graph.path for graph in bundle.manifest.graphs}
    request = {
        "graph": str((bundle.path / graphs[plan.graph]).absolute()),
        "plan": plan.to_dict(),
        "full": True,
        "profiles": None,
        "engine": str(files.engine.absolute()),
        "timings": str(files.timings.absolute()),
        **more,
    }
    answer = ask_builder(command, request, builder, _REMEDIES, progress)
    require_in_place(answer, plan.graph)
    updates = answer["layer_types"].get("KV_CACHE_UPDATE", 0)
    facts = {name: answer[name] for name in _FACTS}
    return {**facts, "cache_updates": updates, "quantized_weights": len(answer["dequantized"])}


def _require_onnx(key: EngineKey, cache: EngineCache) -> None:
    """Refuse to build without onnx; says what is not built, and what is."""
    if importlib.util.find_spec("onnx") is not None:
        return
    there = ", ".join(_describe_key(other) for other in cache.relatives(key))
    raise MissingExtraError(
        f"The bundle's engine for {_describe_key(key)} is not built "
        f"({f'{cache.folder} has one for {there}' if there else 'the cache has none'}), and "
        "building it",
        "tensorrt",
    )


def _describe_key(key: EngineKey) -> str:
    release = f" under L4T {key.l4t}" if key.l4t else ""
    return f"{key.module} {key.version} on SM {key.sm}{release}"
