"""How the process that holds the builder (``trt.worker``) is asked.

Imports neither onnx nor a builder: a machine that only finds its engines needs none of both.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgekit.progress import SILENT, Progress
from edgekit.trt.module import BuilderInfo
from edgekit.worker_process import Remedies, ask

WORKER = (sys.executable, "-c", "from edgekit.trt.worker import main; main()")


def ask_builder(
    command: Sequence[str],
    request: dict[str, Any],
    builder: BuilderInfo,
    remedies: Remedies,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Have a graph built; see ``worker_process.ask`` for what is raised.

    Args:
        command: The worker.
        request: Of ``trt.worker.serve``, but for the builder.
        builder: What it builds with.
        remedies: What to do if it fails.
        progress: Told what the builder begins.
    """
    who = f"{builder.name} {builder.version}"
    return ask(command, {**request, "builder": asdict(builder)}, who, remedies, progress)
