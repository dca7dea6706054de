"""The builder's timings of kernels, kept for the next build of that TensorRT on that GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.bundle.storage import write_atomic


def use_timings(config: Any, path: Path) -> None:
    """Let a build begin with the timings of those before it; ones it does not take are dropped.

    Args:
        config: The build's ``IBuilderConfig``.
        path: Where they are; need not be there.

    Raises:
        OSError: They are there and cannot be read.
    """
    data = path.read_bytes() if path.exists() else b""
    # A file that is damaged or another GPU's costs measuring again, not the build.
    for content in dict.fromkeys((data, b"")):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def keep_timings(config: Any, path: Path) -> None:
    """Write the timings of a finished build, whole or not at all.

    Raises:
        StorageError: They cannot be written.
    """
    cache = config.get_timing_cache()
    if cache is not None:
        write_atomic(path, bytes(cache.serialize()))
