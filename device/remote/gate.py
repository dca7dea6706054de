"""Which documents are taken up: signed by enough trusted keys, for this device, new, in time.

The signature is checked before a byte of the payload is read. Nothing here changes anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from device.remote.errors import RefusedError
from device.remote.trusted_time import TrustedTime
from edgekit.contracts.envelope import Envelope
from edgekit.contracts.fields import show
from edgekit.contracts.signed import DOCUMENTS, Configuration, Document
from edgekit.contracts.topics import Device
from edgekit.errors import MessageError, TrustError
from edgekit.signing import KeySource, verify

_OTHER: Final = "Nothing, if the fleet's service was wrong; else compare [fleet] with the document"


class Gate:
    """Checks documents.

    Args:
        identity: Who the device is.
        cohorts: What it counts itself among.
        keys: Whose word it takes.
    """

    def __init__(self, identity: Device, cohorts: Iterable[str], keys: KeySource) -> None:
        self._identity, self._cohorts, self._keys = identity, frozenset(cohorts), keys

    def prove(self, envelope: Envelope) -> Document:
        """Return what an envelope holds, if it is signed and for this device.

        Raises:
            RefusedError: It is not.
        """
        try:
            verify(envelope, self._keys)
        except TrustError as error:
            raise RefusedError("signature", error.message, error.remedy) from error
        try:
            document = DOCUMENTS[envelope.payload_type].from_bytes(envelope.payload)
        except MessageError as error:
            raise RefusedError("malformed", error.message, error.remedy) from error
        except KeyError as error:
            kind = show(envelope.payload_type)
            raise RefusedError("unsupported", f"nothing reads payloads of {kind}") from error
        self._check_addressee(document)
        return document

    def signers(self, envelope: Envelope) -> frozenset[str]:
        """Return which trusted keys have signed an envelope; none if too few have."""
        try:
            return frozenset(verify(envelope, self._keys))
        except TrustError:
            return frozenset()

    def _check_addressee(self, document: Document) -> None:
        if document.tenant != self._identity.tenant:
            raise RefusedError("tenant", f"it is for tenant {document.tenant}", _OTHER)
        if isinstance(document, Configuration):
            audience = document.audience
            name, is_device = audience.name, audience.kind == "device"
            ours = name == self._identity.device if is_device else name in self._cohorts
        else:
            name, ours = document.device, document.device == self._identity.device
        if not ours:
            raise RefusedError("audience", f"it is for {name}", _OTHER)


def check_fresh(document: Document, floors: Mapping[str, int], time: TrustedTime) -> None:
    """Refuse what is old: at or below the floor of its scope, or expired.

    Raises:
        RefusedError: So it is.
    """
    floor = floors.get(document.scope, 0)
    if document.counter <= floor:
        raise RefusedError(
            "replayed",
            f"its counter is {document.counter}, and {floor} was taken up already",
            "Sign it with a higher counter",
        )
    time.check(document.issued_ms, document.expires_ms)


def digest_of(envelope: Envelope) -> str:
    """Return what names a payload, whoever signed it."""
    return hashlib.sha256(envelope.signed_bytes).hexdigest()
