"""Signed documents in a folder, and the bundles that devices send: every file whole or not there.

    TENANT/configuration/device/NAME.json    the latest of each audience
    TENANT/configuration/cohort/NAME.json
    TENANT/command/DEVICE/COUNTER-ID.json
    TENANT/diagnostics/DEVICE/ID.tar.zst

Names are levels of a topic (``edgekit.contracts.topics``), which hold no separator and begin with a
letter or digit. Nothing here is secret, and nothing here is trusted by a device: it checks itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from edgekit.bundle.storage import storage_errors, write_atomic
from edgekit.contracts.canonical import read_limited
from edgekit.contracts.command_arguments import check_arguments
from edgekit.contracts.envelope import MAX_ENVELOPE_BYTES, Envelope
from edgekit.contracts.remote_settings import check_settings
from edgekit.contracts.signed import DOCUMENTS, Audience, Command, Configuration, Document
from edgekit.contracts.topics import Device, check_segment
from edgekit.errors import BundleError, MessageError, TrustError
from edgekit.signing import KeySource, verify

_LOG = logging.getLogger(__name__)
MAX_COMMANDS: Final = 32
"""Of a device, unexpired; with the configurations that is below what a device reads at once."""
MAX_COHORTS: Final = 16
UPLOAD_GRACE_MS: Final = 3_600_000
"""For so long after a command has expired its bundle is taken: it was begun in time."""
_OPTION: Final = "--documents"

Use = Literal["unknown", "used", "open"]


class DocumentStore:
    """The folder.

    Args:
        root: It; made when something is published.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def publish(self, envelope: Envelope, keys: KeySource, now_ms: int) -> Document:
        """Put a document where its devices find it.

        What no device would take up is refused here, so that who publishes is told. A configuration
        may be published again with other signatures.

        Args:
            envelope: The document.
            keys: Whose signatures devices take.
            now_ms: The time.

        Raises:
            TrustError: It is not signed, has expired, or its counter is not above the last one's.
            MessageError: It is none, or says what may not be said.
            StorageError: It cannot be written.
        """
        verify(envelope, keys)
        document = read_document(envelope)
        if document.expires_ms <= now_ms:
            raise TrustError("the document has expired", "Sign it anew")
        with self._locked(document.tenant):
            highest = self.highest_counter(document)
            if document.counter <= highest and not self._is_published(document, envelope):
                raise TrustError(
                    f"the counter is {document.counter}, and {highest} is published already",
                    "Sign it with a higher counter",
                )
            write_atomic(self._place(document, now_ms), envelope.to_bytes(), option=_OPTION)
        return document

    def _is_published(self, document: Document, envelope: Envelope) -> bool:
        """Whether it is the one that is published, with other signatures: keys are changed so."""
        if not isinstance(document, Configuration):
            return False
        found = _read(self._configuration(document.tenant, document.audience))
        return found is not None and found.signed_bytes == envelope.signed_bytes

    def highest_counter(self, document: Document) -> int:
        """Return the highest counter that is published in a document's scope, 0 if none is."""
        if isinstance(document, Configuration):
            path = self._configuration(document.tenant, document.audience)
            found = _read(path)
            return 0 if found is None else read_document(found).counter
        names = self._commands(document.addressee)
        return max((_counter_of(path) for path in names), default=0)

    def pending(self, device: Device, cohorts: Sequence[str], now_ms: int) -> list[Envelope]:
        """Return what waits for a device: its cohorts' configurations, its own, its commands.

        Args:
            device: Who asks.
            cohorts: What it counts itself among.
            now_ms: The time; what has expired is left out.

        Raises:
            MessageError: A cohort's name is none, or there are too many.
        """
        audiences = [Audience("cohort", name) for name in cohorts[:MAX_COHORTS]]
        audiences.append(Audience("device", device.device))
        paths = [self._configuration(device.tenant, audience) for audience in audiences]
        found = [_read(path) for path in [*paths, *self._commands(device)]]
        return [one for one in found if one is not None and _expires_ms(one) > now_ms]

    def upload_place(self, device: Device, command_id: str, now_ms: int) -> tuple[Use, Path]:
        """Return whether a device may send the bundle of a command, and where it goes.

        Raises:
            MessageError: The id is no name.
        """
        check_segment(command_id, "id")
        place = self._root / device.tenant / "diagnostics" / device.device
        place = place / f"{command_id}.tar.zst"
        for path in self._commands(device):
            envelope = _read(path)
            command = None if envelope is None else read_document(envelope)
            if isinstance(command, Command) and command.id == command_id:
                late = now_ms > command.expires_ms + UPLOAD_GRACE_MS
                if command.command != "logs" or late:
                    return "unknown", place
                return "used" if place.exists() else "open", place
        return "unknown", place

    def _place(self, document: Document, now_ms: int) -> Path:
        if isinstance(document, Configuration):
            return self._configuration(document.tenant, document.audience)
        paths = self._commands(document.addressee)
        if any(path.stem.partition("-")[2] == document.id for path in paths):
            raise TrustError(f"there is a command {document.id} already", "Choose another id")
        waiting = [path for path in paths if not _has_expired(path, now_ms)]
        if len(waiting) >= MAX_COMMANDS:
            raise TrustError(f"{MAX_COMMANDS} commands wait for the device", "Let some expire")
        folder = self._root / document.tenant / "command" / document.device
        return folder / f"{document.counter:016d}-{document.id}.json"

    def _configuration(self, tenant: str, audience: Audience) -> Path:
        return self._root / tenant / "configuration" / audience.kind / f"{audience.name}.json"

    def _commands(self, device: Device) -> list[Path]:
        """Return the files of a device's commands, by their counters."""
        folder = self._root / device.tenant / "command" / device.device
        return sorted(folder.glob("[0-9]*-*.json"))

    @contextlib.contextmanager
    def _locked(self, tenant: str) -> Iterator[None]:
        """Publish alone: of two with the same counter the second is refused."""
        folder = self._root / tenant
        with storage_errors(folder, option=_OPTION):
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield


def read_document(envelope: Envelope) -> Document:
    """Return what an envelope holds, checked as devices check it; signatures are not looked at.

    Raises:
        MessageError: It is none, or says what may not be said.
        TrustError: Nothing is known of its type.
    """
    kind = DOCUMENTS.get(envelope.payload_type)
    if kind is None:
        raise TrustError(f"no document is of the type {envelope.payload_type}")
    document = kind.from_bytes(envelope.payload)
    if isinstance(document, Configuration):
        check_settings(document.settings)
    else:
        check_arguments(document)
    return document


def _read(path: Path) -> Envelope | None:
    """Return a file's document; None if it is gone, or damaged: the others are handed out."""
    try:
        envelope = Envelope.from_bytes(read_limited(path, MAX_ENVELOPE_BYTES))
        read_document(envelope)
    except FileNotFoundError:
        return None
    except (BundleError, MessageError, TrustError):
        _LOG.exception("%s is damaged: publish it again", path)
        return None
    return envelope


def _expires_ms(envelope: Envelope) -> int:
    return read_document(envelope).expires_ms


def _counter_of(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _has_expired(path: Path, now_ms: int) -> bool:
    envelope = _read(path)
    return envelope is None or _expires_ms(envelope) <= now_ms
