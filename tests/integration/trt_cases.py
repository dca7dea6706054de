"""What the tests of the compile check share: small bundles, and their graphs changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from factories import write_checkpoint

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS
from edgekit.trt.compile_check import CheckInput, run_compile_check
from edgekit.trt.module import find_builder


def small_bundle(
    root: Path, target: str = "orin", recipe: str = "w4a16-g32", **shape: Any
) -> Bundle:
    """Build a random checkpoint of 4 layers, without compiling it."""
    checkpoint = write_checkpoint(root / "checkpoint", **{"layers": 4, **shape})
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS[target],
        recipe=load_recipe(recipe),
        out=root / "bundle",
        max_context=100,
        max_sequences=2,
        check=False,
        compile_check=False,
    )
    return open_bundle(build(request).path)


def compiled(bundle: Bundle, *, full: bool | None = None, **options: Any) -> dict[str, Any]:
    """Run the real builder on a bundle's target graph."""
    manifest = bundle.manifest
    plan = EnginePlan.from_dict(manifest.engine_plans[0])
    path = bundle.path / bundle.graph("target").path
    check = CheckInput(path, plan, manifest.tensors, full)
    return run_compile_check(check, find_builder(), **options)


def changed(bundle: Bundle, change: Callable[[onnx.GraphProto], None]) -> Bundle:
    """Change a bundle's target graph on disk; the bundle is only good for compiling then."""
    path = bundle.path / bundle.graph("target").path
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    onnx.save(model, path)
    return bundle
