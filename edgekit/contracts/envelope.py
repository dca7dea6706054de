"""Signed documents on the air: DSSE envelopes, read and written. What checks them is elsewhere.

A signature covers the payload's type together with its bytes, so that a document of one kind never
passes for one of another, and the bytes are those that came: nothing is encoded anew to be checked.

    {"payload": BASE64, "payloadType": MEDIA TYPE, "signatures": [{"keyid": HEX, "sig": BASE64}]}

Source: github.com/secure-systems-lab/dsse, protocol.md 1.0.0 and envelope.md 0.1.0.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.fields import check_fields, check_rows, show
from edgekit.errors import BundleError, MessageError

MAX_ENVELOPE_BYTES: Final = 128 * 1024
MAX_SIGNATURES: Final = 16
"""More are refused unread: every one may cost a verification."""
_URL_SAFE: Final = str.maketrans("-_", "+/")
_REMEDY: Final = "Sign it with edgekit-fleet config sign; docs/remote-config.md has the form"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature.

    Attributes:
        keyid: Which key to try; a hint that proves nothing. Empty if the signer gave none.
        sig: Of :func:`pae`.
    """

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload, what kind it is of, and who signed both.

    Attributes:
        payload_type: Media type of the payload.
        payload: Its bytes. Not to be read before the signatures are checked.
        signatures: Of both.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...] = ()

    @property
    def signed_bytes(self) -> bytes:
        """What a signature covers."""
        return pae(self.payload_type, self.payload)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "payload": base64.b64encode(self.payload).decode(),
            "payloadType": self.payload_type,
            "signatures": [
                {"keyid": one.keyid, "sig": base64.b64encode(one.sig).decode()}
                for one in self.signatures
            ],
        }

    def to_bytes(self) -> bytes:
        """Return the JSON, canonical."""
        return canonical_bytes(self.to_dict())

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Read an envelope.

        Raises:
            MessageError: It is none, or larger than :data:`MAX_ENVELOPE_BYTES`.
        """
        try:
            return cls.from_dict(parse_document(data, "envelope", MAX_ENVELOPE_BYTES))
        except BundleError as error:
            raise MessageError(error.message, _REMEDY) from error

    @classmethod
    def from_dict(cls, data: Any) -> Envelope:
        """Read the JSON form. Fields that DSSE does not have are passed over, as it asks.

        Raises:
            MessageError: It is none.
        """
        try:
            kinds = {"payload": "text", "payloadType": "name", "signatures": "list"}
            check_fields(data, kinds, "envelope")
            rows = data["signatures"]
            check_rows(rows, {"sig": "text"}, "envelope: signatures", MAX_SIGNATURES)
        except BundleError as error:
            raise MessageError(error.message, _REMEDY) from error
        return cls(
            data["payloadType"],
            _decode(data["payload"], "payload"),
            tuple(_signature(row) for row in rows),
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: unambiguous, whatever type and payload hold."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _signature(row: Mapping[str, Any]) -> Signature:
    keyid = row.get("keyid", "")
    if not isinstance(keyid, str):
        raise MessageError(f"envelope: keyid {show(keyid)} is not a string", _REMEDY)
    return Signature(keyid, _decode(row["sig"], "sig"))


def _decode(text: str, what: str) -> bytes:
    """Return what base64 stands for, in either alphabet, as DSSE lets signers choose."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MessageError(f"envelope: {what} is not base64", _REMEDY) from error
