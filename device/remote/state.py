"""What was taken up, on disk: the documents themselves, and the floors that nothing goes below.

One JSON file, replaced as a whole and flushed (``edgekit.bundle.storage.write_atomic``), and the
one before it. A file that cannot be read is put aside under the name ``*.broken`` and the one
before counts; with neither, it is not known what was forbidden, until a file is written again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from edgekit.bundle.storage import storage_errors, write_atomic
from edgekit.contracts.canonical import canonical_bytes, parse_document, read_limited
from edgekit.contracts.envelope import Envelope
from edgekit.contracts.fields import KINDS, check_fields, show
from edgekit.errors import BundleError, MessageError

_LOG = logging.getLogger(__name__)
MAX_FILE_BYTES: Final = 4 << 20
MAX_SEEN: Final = 256
"""Digests of commands that are remembered, so that one that is offered again is known."""
_OPTION: Final = "state_file"


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered.

    Attributes:
        time_floor_ms: It is at least as late as this: told by signed documents.
        floors: Scope to the highest counter taken up in it.
        held: Audience to the configuration that holds.
        seen: Digests of the last commands, oldest first.
        lost: Whether a file was there that could not be read, and none before it.
    """

    time_floor_ms: int = 0
    floors: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, Envelope] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    lost: bool = False

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return canonical_bytes(
            {
                "schema_version": 1,
                "time_floor_ms": self.time_floor_ms,
                "floors": dict(self.floors),
                "held": {name: envelope.to_dict() for name, envelope in self.held.items()},
                "seen": list(self.seen),
                "lost": self.lost,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> State:
        """Read a file's content.

        Raises:
            BundleError: It is none.
            MessageError: A document in it is no envelope.
        """
        found = parse_document(data, where, MAX_FILE_BYTES)
        kinds = {"time_floor_ms": "count", "seen": "list", "lost": "flag"}
        check_fields(found, {**kinds, "floors": "object", "held": "object"}, where)
        if found.get("schema_version") != 1:
            raise BundleError(f"{where} is of version {show(found.get('schema_version'))}")
        is_count = KINDS["count"][1]
        if not all(map(is_count, found["floors"].values())):
            raise BundleError(f"{where}: a floor is no count")
        if not all(isinstance(digest, str) for digest in found["seen"]):
            raise BundleError(f"{where}: a digest is no text")
        return cls(
            found["time_floor_ms"],
            found["floors"],
            {name: Envelope.from_dict(row) for name, row in found["held"].items()},
            tuple(found["seen"]),
            found["lost"],
        )


class StateFile:
    """The file.

    Args:
        path: Where; the one before has ``.previous`` at its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._previous = path.with_name(f"{path.name}.previous")

    def load(self) -> State:
        """Return what is remembered; nothing if there is no file yet.

        Raises:
            StorageError: A file is there and cannot be opened.
        """
        was_there = False
        for path in (self._path, self._previous):
            with storage_errors(path, option=_OPTION):
                state = _state_of(path)
            if isinstance(state, State):
                return state
            was_there = was_there or state == "broken"
        return State(lost=was_there)

    def save(self, state: State) -> None:
        """Write what is to be remembered; it is on disk when this returns.

        Raises:
            StorageError: It cannot be written; what was there before is.
        """
        try:
            with storage_errors(self._path, option=_OPTION):
                before = _read(self._path)
        except BundleError:  # larger than any that is written here: not worth keeping
            before = None
        if before is not None:
            write_atomic(self._previous, before, option=_OPTION)
        write_atomic(self._path, state.to_bytes(), option=_OPTION)


def _state_of(path: Path) -> State | Literal["missing", "broken"]:
    """Return what a file says; one that says nothing is put aside.

    One that was put aside by a start before, and that none has replaced, is as broken as it was:
    otherwise the second start would take the device for a new one.
    """
    aside = path.with_name(f"{path.name}.broken")
    try:
        data = _read(path)
        if data is None:
            return "broken" if aside.exists() else "missing"
        return State.from_bytes(data, str(path))
    except (BundleError, MessageError) as error:
        _LOG.exception("%s", error.message)
        path.replace(aside)
        return "broken"


def _read(path: Path) -> bytes | None:
    """Return a file's bytes, None if it is not there."""
    try:
        return read_limited(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
