"""From a bundle's folder to a model that has answered once.

Importing this brings NumPy, ONNX Runtime and the tokenizer: the agent does so only when there is a
bundle to load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from device.agent.memory import require_room
from device.agent.options import LoadOptions
from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.choice.kept import chosen_options
from edgekit.engine.load import LoadedModel, load_bundle
from edgekit.power import Jetson, read_machine
from edgekit.progress import SILENT, Progress
from edgekit.trt.engine_cache import default_folder


def open_resolved(path: Path) -> Bundle:
    """Open a bundle where its links lead: they may lead elsewhere while it is read.

    Raises:
        BundleError: There is none, or it is not whole.
    """
    return open_bundle(path.resolve())


def load_model(bundle: Bundle, options: LoadOptions, progress: Progress = SILENT) -> LoadedModel:
    """Load a bundle and run one token, so that what cannot run is found before it serves.

    Raises:
        NoMemoryError: It needs more memory than it may take.
        EdgekitError: It is damaged, or does not run here.
    """
    chosen: dict[str, Any] = {
        "provider": options.provider,
        "fallback": options.fallback,
        "dialect": options.dialect,
        "threads": options.threads,
    }
    warnings: tuple[str, ...] = ()
    if options.provider == "auto":
        own, warnings = chosen_options(default_folder(), bundle, options.threads)
        chosen |= own
    if options.memory_check and shares_memory(chosen["provider"]):
        require_room(bundle, options.slots(bundle), chosen["provider"])
    model = load_bundle(
        bundle,
        max_sequences=options.slots(bundle),
        digests=options.digests,
        progress=progress,
        **chosen,
    )
    try:
        model.session.prefill(0, [0])
        model.session.release(0)
    except BaseException:
        model.session.close()
        raise
    return replace(model, warnings=(*warnings, *model.warnings))


def shares_memory(provider: str) -> bool:
    """Whether a provider's models live in the machine's own memory: on a Jetson all do."""
    return provider == "cpu" or isinstance(read_machine(), Jetson)
