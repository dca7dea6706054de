"""The compile check: a real builder builds a bundle's graph, and what came of it is judged.

What is judged, and why: types are the graph's (strongly typed); every weight the manifest stores
as codes is dequantized in the network and the engine's weights are no larger than the stored ones
(none became float16); every TensorScatter became a layer that updates a cache; attention is fused,
or the finding says that it is not; no input of the graph is ignored. The engine is thrown away:
an Orin's engine is built on an Orin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.contracts.engine_plan import EnginePlan
from edgekit.contracts.manifest import TensorEntry, blob_bytes
from edgekit.errors import GraphError
from edgekit.progress import SILENT, Progress
from edgekit.trt.client import WORKER, ask_builder
from edgekit.trt.module import BuilderInfo
from edgekit.trt.shrink import layer_of
from edgekit.worker_process import Remedies

FULL_LIMIT_BYTES = 256_000_000
"""A bundle of fewer bytes of weights is compiled whole; the builder takes 3 to 5 times as many."""
SLACK_FRACTION, SLACK_BYTES = 0.1, 1_000_000
"""What an engine's weights may take beyond the stored ones: alignment, constants it made itself."""
_REMEDIES = Remedies(killed="Free memory", failed="")
"""The commands add how to leave the check out."""


@dataclass(frozen=True, slots=True)
class CheckInput:
    """What a check is made of.

    Attributes:
        path: The graph's file, its external data below its folder.
        plan: How its engine is built.
        tensors: What the manifest stores.
        full: Compile every layer, whatever the size; None decides by ``FULL_LIMIT_BYTES``.
    """

    path: Path
    plan: EnginePlan
    tensors: tuple[TensorEntry, ...]
    full: bool | None = None


def run_compile_check(
    check: CheckInput,
    builder: BuilderInfo,
    progress: Progress = SILENT,
    *,
    command: Sequence[str] = WORKER,
) -> dict[str, Any]:
    """Compile a graph in a process of its own and judge the result.

    Args:
        check: What to compile.
        builder: What to compile with.
        progress: Told what the builder begins.
        command: The worker; tests give another.

    Returns:
        The findings, as they stand in the manifest (``compile_check``).

    Raises:
        GraphError: The parser refuses the graph, ignores an input, or a weight changed its type.
        EngineError: The builder fails, or its process ended before it answered.
    """
    full = check.full
    if full is None:
        full = blob_bytes(check.tensors) <= FULL_LIMIT_BYTES
    # Decoding one sequence and prefilling stand for the batches between: the same layers.
    names = [check.plan.profiles[0].name, check.plan.profiles[-1].name]
    request = {
        "graph": str(check.path.absolute()),
        "plan": check.plan.to_dict(),
        "full": full,
        "profiles": names,
    }
    answer = ask_builder(command, request, builder, _REMEDIES, progress)
    judge(answer, check.tensors, check.plan.graph)
    return findings(answer, check.plan, builder)


def findings(answer: dict[str, Any], plan: EnginePlan, builder: BuilderInfo) -> dict[str, Any]:
    """Return what a manifest says of a passed check; nothing in it depends on time or memory."""
    compiled = len(answer["kept"])
    return {
        "status": "passed",
        "builder": builder.name,
        "version": builder.version,
        "sm": builder.sm,
        "target_version": builder.meets(plan.tensorrt),
        **({"passed_over": builder.passed_over} if builder.passed_over else {}),
        "graph": plan.graph,
        "profiles": answer["profiles"],
        "strongly_typed": plan.strongly_typed,
        "layers": answer["layers"],
        "layers_compiled": compiled,
        "layer_kinds": answer["kinds"],
        "rest": "none" if compiled == answer["layers"] else "isomorphic",
        "embedding_rows_compiled": answer["embedding_rows"],
        "attention": answer["attention"],
        "cache_updates": answer["layer_types"].get("KV_CACHE_UPDATE", 0),
        "quantized_weights": len(answer["dequantized"]),
        "stored_bytes": answer["stored_bytes"],
        "engine_weights_bytes": answer["weights_bytes"],
    }


def judge(answer: dict[str, Any], tensors: tuple[TensorEntry, ...], graph: str) -> None:
    """Compare what was built with what the manifest stores.

    Raises:
        GraphError: A weight is no longer codes, the engine's weights are too large, or a cache is
            copied rather than updated.
    """
    kept, dequantized = set(answer["kept"]), set(answer["dequantized"])
    for entry in tensors:
        if entry.role != "codes":
            continue
        if layer_of(entry.name) in {None, *kept} and entry.name not in dequantized:
            raise GraphError(
                f"{graph}: {entry.name} is stored as {entry.dtype}, but the network has no "
                f"dequantization of it: the weight is no longer quantized"
            )
    # The builder lays unquantized weights out anew for each profile, codes it does not.
    again = answer["dense_bytes"] * (len(answer["profiles"]) - 1)
    limit = int((answer["stored_bytes"] + again) * (1 + SLACK_FRACTION)) + SLACK_BYTES
    if answer["weights_bytes"] > limit:
        raise GraphError(
            f"{graph}: the engine's weights take {answer['weights_bytes']} bytes, those it was "
            f"built from {answer['stored_bytes']}: weights were widened"
        )
    require_in_place(answer, graph)


def require_in_place(answer: dict[str, Any], graph: str) -> None:
    """Refuse an engine that copies a cache rather than update it where it stands.

    Raises:
        GraphError: Says how many of the caches are updated in place.
    """
    scattered = answer["census"].get("TensorScatter", 0)
    updates = answer["layer_types"].get("KV_CACHE_UPDATE", 0)
    if updates != scattered:
        raise GraphError(
            f"{graph}: {scattered} TensorScatter became {updates} cache updates in place"
        )
