"""What may run a bundle on this machine, and why the rest may not."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.bundle.reader import Bundle
from edgekit.choice.edgellm import find_edgellm
from edgekit.engine.load import AnyProvider
from edgekit.engine.ort_open import newest_opset
from edgekit.errors import EdgekitError, MissingExtraError
from edgekit.exporters.gptq_checkpoint import export_obstacle

Engine = Literal["tensorrt", "onnxruntime", "edgellm"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a bundle.

    Attributes:
        engine: Whose kernels.
        provider: As ``edgekit run`` takes it; None for an engine that is no session of edgekit's.
        dialect: Of the graph; None where the engine decides.
    """

    engine: Engine
    provider: AnyProvider | None
    dialect: str | None = None

    @property
    def name(self) -> str:
        """``tensorrt``, ``edgellm``, ``onnxruntime-cuda/ort``."""
        if self.engine != "onnxruntime":
            return self.engine
        return f"onnxruntime-{self.provider}/{self.dialect}"


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a trial may measure.

    Attributes:
        found: Likely fastest first, so that a slow machine's user sees the likely choice early.
        left_out: Why others are not among them, by their names.
    """

    found: tuple[Candidate, ...]
    left_out: dict[str, str]


def find_candidates(bundle: Bundle, edgellm_python: Path | None) -> Candidates:
    """Return the engines that this machine and a bundle have in common; nothing is loaded.

    Args:
        bundle: An opened bundle.
        edgellm_python: Interpreter of the environment with ``tensorrt-edgellm``; None without.
    """
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name, reason in (
        ("tensorrt", _no_tensorrt(bundle)),
        ("edgellm", _no_edgellm(bundle, edgellm_python)),
    ):
        if reason:
            left_out[name] = reason
        elif name == "tensorrt":
            found.append(Candidate("tensorrt", "tensorrt"))
        else:
            found.append(Candidate("edgellm", None))
    _add_onnxruntime(bundle, found, left_out)
    return Candidates(tuple(found), left_out)


def _no_tensorrt(bundle: Bundle) -> str:
    """Return why TensorRT is no candidate; empty if it is one."""
    if not bundle.manifest.engine_plans:
        return f"the bundle plans no engine: it was built for {bundle.manifest.target['name']}"
    from edgekit.trt.device_build import find_machine  # noqa: PLC0415 - for a device only
    from edgekit.trt.l4t import require_machine  # noqa: PLC0415

    try:
        machine = find_machine()
        require_machine(bundle.manifest.requirements, machine.l4t, machine.builder)
    except EdgekitError as error:
        return str(error)
    if not machine.runs_engines:
        return f"{machine.builder.name} finds no GPU here to run an engine on"
    return ""


def _no_edgellm(bundle: Bundle, python: Path | None) -> str:
    """Return why TensorRT Edge-LLM is no candidate; empty if it is one."""
    obstacle = export_obstacle(bundle)
    if obstacle:
        return obstacle
    if python is None:
        return "no environment with it was named (--edgellm-python)"
    try:
        find_edgellm(python)
    except EdgekitError as error:
        return str(error)
    return ""


def _add_onnxruntime(bundle: Bundle, found: list[Candidate], left_out: dict[str, str]) -> None:
    """Add a candidate for each provider and graph, or say why it is none."""
    if importlib.util.find_spec("onnxruntime") is None:
        left_out["onnxruntime"] = MissingExtraError("Running bundles", "device").message
        return
    import onnxruntime  # noqa: PLC0415

    newest = newest_opset()
    offered = onnxruntime.get_available_providers()
    providers: tuple[tuple[AnyProvider, str, str], ...] = (
        ("cuda", "CUDAExecutionProvider", "target"),
        ("cpu", "CPUExecutionProvider", "host"),
    )
    for provider, name, purpose in providers:
        if name not in offered:
            left_out[f"onnxruntime-{provider}"] = f"this ONNX Runtime has no {name}"
            continue
        for dialect in _dialects(bundle, purpose, provider):
            candidate = Candidate("onnxruntime", provider, dialect)
            opset = bundle.graph(purpose, dialect).opset
            if opset > newest:
                left_out[candidate.name] = (
                    f"this ONNX Runtime takes opset {newest} at most, and it is of opset {opset}"
                )
            else:
                found.append(candidate)


def _dialects(bundle: Bundle, purpose: str, provider: AnyProvider) -> list[str]:
    """Return the dialects of a provider's graphs, ``ort`` first: it is mostly the faster one."""
    dialects = {graph.dialect for graph in bundle.manifest.graphs}
    if provider == "cuda":
        dialects -= {"trt103"}
    own = [name for name in sorted(dialects) if _has(bundle, purpose, name)]
    return sorted(own, key=lambda name: name != "ort")


def _has(bundle: Bundle, purpose: str, dialect: str) -> bool:
    try:
        bundle.graph(purpose, dialect)
    except EdgekitError:
        return False
    return True
