"""The diagnostic bundle: some files in a tar in a zstd frame, redacted on the way in, bounded.

``manifest.json`` comes first: what is there, with digests, what is missing and why, and how often
something private was taken out. A part that cannot be read is missing; the others are packed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from device.diagnostics.events import Events
from device.diagnostics.redact import Redactor
from edgekit import __version__
from edgekit.errors import EdgekitError, MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType

_LOG = logging.getLogger(__name__)
MAX_PARTS: Final = 16
MAX_PART_BYTES: Final = 512 * 1024
"""Of a part, redacted; of longer ones the end is kept."""
LEVEL: Final = 10
"""Of zstd."""


@dataclass(frozen=True, slots=True)
class Part:
    """What goes into one file of the bundle, before it is redacted.

    Attributes:
        name: The file's.
        kind: ``events`` are lines of the agent's log, ``lines`` free text, ``facts`` JSON.
        read: Returns lines, or a JSON value. An OSError or EdgekitError says why there is none.
    """

    name: str
    kind: Literal["events", "lines", "facts"]
    read: Callable[[], Any]


def pack(parts: Sequence[Part], time_ms: int) -> bytes:
    """Return a bundle.

    Args:
        parts: At most 16.
        time_ms: When it is made.

    Raises:
        MissingExtraError: There is no zstd.
        ValueError: There are more parts.
    """
    if len(parts) > MAX_PARTS:
        raise ValueError(f"{len(parts)} parts, at most {MAX_PARTS}")
    zstd = _zstd()
    redactor = Redactor()
    events = Events(redactor)
    files: dict[str, bytes] = {}
    absent: dict[str, str] = {}
    for part in parts:
        found = _content_or_reason(part, redactor, events)
        if isinstance(found, bytes):
            files[part.name] = found
        else:
            absent[part.name] = found
    manifest = {
        "schema_version": 1,
        "edgekit": __version__,
        "time_ms": time_ms,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        },
        "absent": absent,
        "taken_out": dict(sorted((+redactor.counts).items())),
    }
    packed: bytes = zstd.compress(_tar({"manifest.json": _json(manifest), **files}), LEVEL)
    return packed


def _content_or_reason(part: Part, redactor: Redactor, events: Events) -> bytes | str:
    """Return a file's content, or why there is none."""
    try:
        return _content(part, redactor, events)
    except (OSError, EdgekitError) as error:
        _LOG.info("no %s in the bundle: %s", part.name, error)
        return redactor.line(_reason(error))


def _content(part: Part, redactor: Redactor, events: Events) -> bytes:
    read = part.read()
    if part.kind == "facts":
        data = _json(redactor.value(read))
        if len(data) > MAX_PART_BYTES:
            return _json({"left_out": f"{len(data)} bytes"})
        return data
    redacted = events.lines(read) if part.kind == "events" else map(redactor.line, read)
    return _tail(redacted)


def _tail(lines: Iterable[str]) -> bytes:
    """Return the last lines that fit."""
    kept: deque[bytes] = deque()
    size = 0
    for line in lines:
        kept.append(line.encode("utf-8", "replace") + b"\n")
        size += len(kept[-1])
        while size > MAX_PART_BYTES:
            size -= len(kept.popleft())
    return b"".join(kept)


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True, sort_keys=False).encode() + b"\n"


def _tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar whose bytes depend on nothing but the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def _zstd() -> ModuleType:
    """Return the compressor: of the standard library from Python 3.14 on."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415
        else:
            from backports import zstd  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("A diagnostic bundle", "telemetry") from error
    return zstd
