"""What the tests of TensorRT sessions share: a bundle with a plan, and a machine that is a fake."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import write_checkpoint
from fake_tensorrt import MODULE, FakeCuda, FakeTensorRT, write_engine

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.contracts.engine_plan import EnginePlan, plan_engine
from edgekit.engine import tensorrt
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS
from edgekit.trt import device_build
from edgekit.trt.device_build import Machine
from edgekit.trt.module import BuilderInfo

CONTEXT, SLOTS, CHUNK = 100, 3, 40
INFO = BuilderInfo(MODULE, "TensorRT", "10.16.2.10", "8.7")


def float_bundle(root: Path) -> Bundle:
    """Return a random model whose graph computes in float32: logits can be held to others'."""
    checkpoint = write_checkpoint(root / "checkpoint", intermediate=64)
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS["cpu"],
        recipe=load_recipe("float16"),
        out=root / "bundle",
        max_context=CONTEXT,
        max_sequences=SLOTS,
        check=False,
    )
    return open_bundle(build(request).path)


def plan_of(bundle: Bundle, max_sequences: int = 4) -> EnginePlan:
    """Return a plan of its float32 graph."""
    return plan_engine(
        bundle.graph("host", "standard").name,
        ">=10.15,<12",
        max_context=CONTEXT,
        max_sequences=max_sequences,
        chunk_tokens=CHUNK,
    )


def planned(bundle: Bundle, plan: EnginePlan) -> Bundle:
    """Return the bundle as one for a target with TensorRT."""
    requirements = {**bundle.manifest.requirements, "tensorrt": plan.tensorrt}
    manifest = replace(bundle.manifest, engine_plans=(plan.to_dict(),), requirements=requirements)
    return replace(bundle, manifest=manifest)


class FakeMachine:
    """An Orin in place of this machine.

    Attributes:
        made: Engines that were built, in order.
        failure: Raised by builds where it is set.
        machine: What the session finds; may be changed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda) -> None:
        self.made: list[Path] = []
        self.failure: Exception | None = None
        self.machine = Machine(INFO, "39.2.0")
        monkeypatch.setitem(sys.modules, MODULE, FakeTensorRT(cuda))
        monkeypatch.setattr(tensorrt, "load_cuda", lambda: cuda)
        for module in (tensorrt, device_build):
            monkeypatch.setattr(module, "find_machine", lambda: self.machine)
        monkeypatch.setattr(device_build, "_build", self._build)

    def _build(
        self, bundle: Bundle, plan: EnginePlan, builder: Any, files: Any, *rest: Any
    ) -> dict[str, Any]:
        del builder, rest
        if self.failure is not None:
            raise self.failure
        graphs = {graph.name: graph.path for graph in bundle.manifest.graphs}
        self.made.append(write_engine(files.engine, bundle.path / graphs[plan.graph], plan))
        return {
            "attention": "fused",
            "profiles": [profile.name for profile in plan.profiles],
            "weights_bytes": 1,
            "stored_bytes": 1,
            "layers": 2,
            "cache_updates": 4,
            "quantized_weights": 0,
        }
