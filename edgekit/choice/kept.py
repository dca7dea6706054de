"""The choice that was made for a bundle on a machine, kept for those that run it.

One file a bundle, ``choices/<digest>.json`` in the folder of engines. It holds for what it was
measured with: where a version or the board is another, it is refused and says so, for what was
fastest then need not be now.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.bundle.reader import Bundle
from edgekit.bundle.storage import storage_errors, write_atomic
from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.fields import check_choice, check_fields
from edgekit.engine.load import AnyProvider
from edgekit.errors import BundleError, EdgekitError, EngineError
from edgekit.power import Jetson, read_machine

FOLDER = "choices"
OPTION = "--cache"
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_KINDS = {
    "basis": "object",
    "name": "text",
    "provider": "text",
    "dialect": "text?",
    "threads": "positive?",
    "faster": "text?",
}
_TENSORRT = ("tensorrt", "tensorrt_rtx_bindings")


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs a bundle here.

    Attributes:
        name: Of the candidate.
        provider: As ``edgekit run`` takes it.
        dialect: Of the graph; None where the engine decides.
        threads: CPU threads it was measured with; None is all cores.
        faster: A candidate that was faster still but is run by a server of its own; or None.
    """

    name: str
    provider: AnyProvider
    dialect: str | None
    threads: int | None
    faster: str | None


def basis() -> dict[str, str]:
    """Return what a choice depends on beside the bundle: versions, and the board."""
    machine = read_machine()
    board = machine.board if isinstance(machine, Jetson) else machine.gpu_name
    found = {"edgekit": __version__, "board": board or "no NVIDIA GPU"}
    for name in _RUNTIMES:
        found[name] = _version(name)
    found["tensorrt"] = "none"
    if any(importlib.util.find_spec(name) is not None for name in _TENSORRT):
        from edgekit.trt.device_build import find_machine  # noqa: PLC0415 - for a device only

        try:
            builder = find_machine().builder
            found["tensorrt"] = f"{builder.name} {builder.version} for SM {builder.sm}"
        except EdgekitError as error:
            found["tensorrt"] = error.message
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def require_writable(folder: Path) -> None:
    """Refuse a folder that a choice cannot be kept in, before minutes of measuring.

    Raises:
        StorageError: It cannot be made, or not written.
    """
    choices = folder / FOLDER
    with storage_errors(choices, option=OPTION):
        choices.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=choices):
            pass


def save_choice(folder: Path, bundle: Bundle, choice: Choice, found: Mapping[str, str]) -> Path:
    """Keep a choice; returns its file.

    Args:
        folder: Of engines.
        bundle: Whose it is.
        choice: What was chosen.
        found: The :func:`basis` it was measured on.

    Raises:
        StorageError: It cannot be written.
    """
    path = folder / FOLDER / f"{bundle.digest}.json"
    data = {"schema_version": 1, "basis": dict(found), **asdict(choice)}
    write_atomic(path, canonical_bytes(data), option=OPTION)
    return path


def chosen_options(
    folder: Path, bundle: Bundle, threads: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return how ``load_bundle`` runs what was chosen for a bundle, and what to tell the user.

    Args:
        folder: As of :func:`load_choice`.
        bundle: The bundle.
        threads: CPU threads asked for; None takes the choice's.

    Raises:
        EngineError: Nothing was chosen, or under other circumstances.
    """
    choice = load_choice(folder, bundle)
    options = {
        "provider": choice.provider,
        "dialect": choice.dialect,
        "threads": choice.threads if threads is None else threads,
    }
    told = f"{choice.faster} was measured faster, but is served by itself (docs/edgellm.md)"
    return options, (told,) if choice.faster else ()


def load_choice(folder: Path, bundle: Bundle) -> Choice:
    """Return the choice that was made for a bundle.

    Raises:
        EngineError: None was made, it is damaged, or it was measured on another basis.
    """
    remedy = f"edgekit engine choose {bundle.path}"
    path = folder / FOLDER / f"{bundle.digest}.json"
    try:
        said = parse_document(path.read_bytes(), path.name)
        check_fields(said, _KINDS, path.name)
        check_choice(said["provider"], ("cpu", "cuda", "tensorrt"), f"{path.name}: provider")
        values: dict[str, Any] = {name: said.get(name) for name in Choice.__slots__}
    except FileNotFoundError as error:
        raise EngineError("no engine was chosen for this bundle on this machine", remedy) from error
    except (OSError, BundleError) as error:
        said_so = error.message if isinstance(error, BundleError) else error.strerror or str(error)
        raise EngineError(f"the choice in {path} cannot be read: {said_so}", remedy) from error
    now = basis()
    changed = [
        f"{key} was {said['basis'].get(key, 'none')}, is {now[key]}"
        for key in now
        if said["basis"].get(key, "none") != now[key]
    ]
    if changed:
        raise EngineError(
            f"the engine was chosen under other circumstances: {'; '.join(changed)}", remedy
        )
    return Choice(**values)
