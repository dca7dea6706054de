"""L4T, the Jetson's system software: its release, and whether a bundle may run on it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgekit.contracts.versions import in_range
from edgekit.errors import EngineError
from edgekit.trt.module import BuilderInfo

RELEASE_FILE = Path("/etc/nv_tegra_release")
_RELEASE = re.compile(r"#\s*R(\d{1,4})\s*\(release\),\s*REVISION:\s*(\d{1,4}(?:\.\d{1,4}){0,2})\b")


def parse_l4t(text: str) -> str:
    """Return the release that the first line of ``/etc/nv_tegra_release`` names, ``39.2.0``.

    Raises:
        EngineError: It names none.
    """
    first = text.partition("\n")[0]
    found = _RELEASE.match(first)
    if found is None:
        raise EngineError(
            f"{RELEASE_FILE} names no L4T release: {first[:80]!r}",
            "Install the package nvidia-l4t-core again",
        )
    return f"{found[1]}.{found[2]}"


def read_l4t(path: Path = RELEASE_FILE) -> str | None:
    """Return the release of this machine's L4T; None where it is no Jetson.

    Raises:
        EngineError: The file is there and does not say.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_l4t(text)


def require_machine(requirements: Mapping[str, str], l4t: str | None, builder: BuilderInfo) -> None:
    """Refuse to build a bundle's engine where its manifest says it would not run.

    A machine without L4T is held to the TensorRT range alone. TensorRT-RTX is let pass: what it
    builds is a trial, and said to be one.

    Args:
        requirements: Of the manifest: the ranges ``l4t`` and ``tensorrt``.
        l4t: This machine's release, None for no Jetson.
        builder: This machine's builder.

    Raises:
        EngineError: Names what is here and what is needed.
    """
    wanted = requirements["l4t"]
    if l4t is not None and wanted and not in_range(l4t, wanted):
        raise EngineError(
            f"the bundle needs L4T {wanted}, this machine has {l4t}",
            "Install the JetPack it was built for, or build it for this one's target "
            "(`edgekit build --target`: orin for JetPack 7.2, orin-jp62 for 6.2)",
        )
    wanted = requirements["tensorrt"]
    if not wanted:
        raise EngineError(
            "the bundle's target runs no TensorRT",
            "Build it with --target orin or orin-jp62, or run it with --provider cpu",
        )
    if builder.name == "TensorRT" and not builder.meets(wanted):
        raise EngineError(
            f"the bundle needs TensorRT {wanted}, this machine has {builder.version}",
            "Install that TensorRT, or build the bundle for this one's target",
        )
