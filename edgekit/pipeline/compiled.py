"""The compile stage of ``build`` and ``verify``: runs the check, or says why it was not run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.contracts.engine_plan import EnginePlan, plan_engine
from edgekit.contracts.manifest import GraphEntry, TensorEntry
from edgekit.errors import BundleError, EdgekitError, EngineError, GraphError
from edgekit.pipeline.compile_findings import NO_TENSORRT, describe_check, not_run
from edgekit.plan.memory import PREFILL_CHUNK_TOKENS
from edgekit.progress import SILENT, Progress
from edgekit.targets import Target
from edgekit.trt.compile_check import CheckInput, run_compile_check
from edgekit.trt.module import BuilderInfo, NoBuilderError, find_builder

LEAVE_OUT = "--no-compile-check leaves the check out"
"""Of ``build`` and of ``verify``: whatever stops the check, the rest can be had without it."""


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
    (plan,) = plans
    try:
        builder = find_builder(plan.tensorrt)
    except NoBuilderError as error:
        progress.finish(f"not run: {error.reason}")
        return not_run(f"{error.reason}. {error.remedy}")
    paths = {entry.name: folder / entry.path for entry in graphs}
    try:
        found = run_compile_check(CheckInput(paths[plan.graph], plan, tensors), builder, progress)
    except (EngineError, GraphError) as error:
        raise with_remedy(error, builder, plan.tensorrt) from error
    progress.finish(describe_check(found))
    return found


def with_remedy(error: EdgekitError, builder: BuilderInfo, wanted: str) -> EdgekitError:
    """Return an error of the check with what to do about it, which both commands can do.

    Args:
        error: What the check raised.
        builder: What it ran.
        wanted: TensorRT's versions that the device has.
    """
    remedy, usual = error.remedy, error.remedy in {"", error.usual_remedy}
    if usual and builder.meets(wanted):
        remedy = "The device would fail alike: use another recipe, and report it"
    elif usual:
        remedy = (
            f"This is {builder.name}, the device has TensorRT {wanted}, which may take it: check "
            "there, and report it"
        )
    return type(error)(error.message, f"{remedy}; {LEAVE_OUT}")


def check_bundle(bundle: Bundle, progress: Progress = SILENT) -> dict[str, Any]:
    """Run the check on a bundle; as :func:`check_compiles`.

    Raises:
        BundleError: The bundle plans more than one engine.
    """
    manifest = bundle.manifest
    plans = tuple(map(EnginePlan.from_dict, manifest.engine_plans))
    if len(plans) > 1:
        raise BundleError(
            f"{bundle.path} has {len(plans)} engine plans, this edgekit compiles one a bundle",
            "Upgrade edgekit, or build the bundle again with this version",
        )
    if not plans and manifest.requirements["tensorrt"]:
        return not_run("the bundle has no engine plan: it was built by an earlier edgekit")
    return check_compiles(bundle.path, manifest.graphs, plans, manifest.tensors, progress)
