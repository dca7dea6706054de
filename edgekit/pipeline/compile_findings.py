"""What a compile check found, as the manifest keeps it and as a person reads it.

Apart from ``pipeline.compiled``, which runs the check and imports onnx: a device does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO_TENSORRT = "the target runs no TensorRT"


def not_run(reason: str) -> dict[str, Any]:
    """Return the findings of a check that was not run."""
    return {"status": "not run", "reason": reason}


def describe_check(found: Mapping[str, Any]) -> str:
    """Return one line about the findings for a person."""
    if found["status"] != "passed":
        return f"not run: {found['reason']}"
    other = "" if found["target_version"] else ", another TensorRT than the target's"
    layers = f"{found['layers_compiled']} of {found['layers']} layers"
    return (
        f"{found['builder']} {found['version']} for SM {found['sm']}{other}: {layers}, "
        f"attention {found['attention']}"
    )
