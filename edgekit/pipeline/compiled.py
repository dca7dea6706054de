"""The compile stage of ``build`` and ``verify``: runs the check, or says why it was not run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.contracts.engine_plan import EnginePlan, plan_engine
from edgekit.contracts.manifest import GraphEntry, TensorEntry
from edgekit.errors import MissingExtraError
from edgekit.pipeline.compile_findings import NO_TENSORRT, describe_check, not_run
from edgekit.plan.memory import PREFILL_CHUNK_TOKENS
from edgekit.progress import SILENT, Progress
from edgekit.targets import Target
from edgekit.trt.compile_check import CheckInput, run_compile_check
from edgekit.trt.module import find_builder


@dataclass(frozen=True, slots=True)
class Compiled:
    """How a bundle's engines are to be built, and what a check on this host found."""

    plans: tuple[EnginePlan, ...]
    findings: dict[str, Any]


def plan_engines(
    target: Target, graphs: tuple[GraphEntry, ...], *, max_context: int, max_sequences: int
) -> tuple[EnginePlan, ...]:
    """Return the plan of the target graph's engine; none for a target without TensorRT."""
    if not target.tensorrt:
        return ()
    graph = next(entry for entry in graphs if entry.purpose == "target")
    plan = plan_engine(
        graph.name,
        target.tensorrt,
        max_context=max_context,
        max_sequences=max_sequences,
        chunk_tokens=PREFILL_CHUNK_TOKENS,
    )
    return (plan,)


def check_compiles(
    folder: Path,
    graphs: tuple[GraphEntry, ...],
    plans: tuple[EnginePlan, ...],
    tensors: tuple[TensorEntry, ...],
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Compile the graph of each plan with this machine's builder.

    Args:
        folder: Where the graphs and the blobs below them are.
        graphs: Their entries.
        plans: What to build; for now one engine a bundle.
        tensors: What the manifest stores.
        progress: Told about a stage ``compile``.

    Returns:
        The findings; of a check that was not run, why.

    Raises:
        GraphError: The parser refuses the graph, or the engine is not what the graph says.
        EngineError: The builder fails.
    """
    if not plans:
        return not_run(NO_TENSORRT)
    progress.start("compile", 0)
    try:
        builder = find_builder()
    except MissingExtraError as error:
        progress.finish("not run: no TensorRT builder is installed")
        return not_run(f"no TensorRT builder is installed. {error.remedy}")
    paths = {entry.name: folder / entry.path for entry in graphs}
    (plan,) = plans
    found = run_compile_check(CheckInput(paths[plan.graph], plan, tensors), builder, progress)
    progress.finish(describe_check(found))
    return found


def check_bundle(bundle: Bundle, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the check on a bundle; as :func:`check_compiles`."""
    manifest = bundle.manifest
    plans = tuple(map(EnginePlan.from_dict, manifest.engine_plans))
    if not plans and manifest.requirements["tensorrt"]:
        return not_run("the bundle has no engine plan: it was built by an earlier edgekit")
    return check_compiles(bundle.path, manifest.graphs, plans, manifest.tensors, progress)
