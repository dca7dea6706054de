"""Ed25519 keys, and who has to have signed what: makes and checks the signatures of envelopes.

A key's id is the sha256 of its canonical JSON, ``{"keytype", "keyval", "scheme"}``, as TUF and
securesystemslib have it, so that a TUF role can delegate to the same key later. What is trusted is
a :class:`KeySource`: here a file that is installed with the agent and never fetched.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgekit.contracts.canonical import canonical_bytes, parse_document, read_limited
from edgekit.contracts.envelope import Envelope, Signature
from edgekit.contracts.fields import check_fields, show
from edgekit.contracts.signed import DOCUMENTS
from edgekit.errors import BundleError, StorageError, TrustError

ROLES: Final = {media_type: kind.NAME for media_type, kind in DOCUMENTS.items()}
"""Media type of a payload to the role whose keys sign it."""
MAX_KEYS: Final = 64
MAX_FILE_BYTES: Final = 64 * 1024
SCHEMA_VERSION: Final = 1
_REMEDY: Final = "Install the file that edgekit-fleet config keygen --trust has written"
_KEY_REMEDY: Final = "Make one with edgekit-fleet config keygen"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks.

    Attributes:
        raw: Its 32 bytes (RFC 8032).
    """

    raw: bytes

    def to_dict(self) -> dict[str, Any]:
        """Return TUF's JSON form."""
        return {"keytype": "ed25519", "keyval": {"public": self.raw.hex()}, "scheme": "ed25519"}

    @property
    def keyid(self) -> str:
        """Its name, 64 hex digits."""
        return hashlib.sha256(canonical_bytes(self.to_dict())).hexdigest()

    @classmethod
    def from_dict(cls, data: Any, where: str) -> PublicKey:
        """Read TUF's JSON form.

        Raises:
            TrustError: It is none, or of another algorithm.
        """
        try:
            check_fields(data, {"keytype": "text", "scheme": "text", "keyval": "object"}, where)
            check_fields(data["keyval"], {"public": "text"}, f"{where}: keyval")
        except BundleError as error:
            raise TrustError(error.message, _REMEDY) from error
        if (data["keytype"], data["scheme"]) != ("ed25519", "ed25519"):
            raise TrustError(f"{where} is a key of {show(data['scheme'])}, not ed25519", _REMEDY)
        try:
            raw = bytes.fromhex(data["keyval"]["public"])
            Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            raise TrustError(f"{where} is not 32 bytes in hex", _REMEDY) from error
        return cls(raw)

    def has_signed(self, signed: bytes, signature: bytes) -> bool:
        """Whether a signature is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, signed)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A key that signs.

    Args:
        private: It.

    Attributes:
        public: Its other half.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM file (PKCS 8).

        Raises:
            StorageError: It cannot be read.
            TrustError: Others than its owner may read it, or it is no Ed25519 key.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                pem = file.read(MAX_FILE_BYTES)
        except OSError as error:
            said = error.strerror or error
            raise StorageError(f"cannot read the key {path}: {said}", _KEY_REMEDY) from error
        if mode & 0o077:
            raise TrustError(f"{path} may be read by others (mode {mode:04o})", "chmod 600 it")
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustError(f"{path} is no private key without a password", _KEY_REMEDY) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise TrustError(f"{path} is no Ed25519 key", _KEY_REMEDY)
        return cls(private)

    def save(self, path: Path) -> None:
        """Write it to a new PEM file that its owner alone may read.

        Raises:
            StorageError: The file is there already, or cannot be written.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            said = error.strerror or error
            remedy = "Choose another name: a key is never overwritten"
            raise StorageError(f"cannot write the key {path}: {said}", remedy) from error

    def sign(self, envelope: Envelope) -> Envelope:
        """Return an envelope with this key's signature, once, beside those of others."""
        keyid = self.public.keyid
        own = Signature(keyid, self._private.sign(envelope.signed_bytes))
        others = tuple(one for one in envelope.signatures if one.keyid != keyid)
        return replace(envelope, signatures=(*others, own))


@dataclass(frozen=True, slots=True)
class Role:
    """Who may sign a kind of document.

    Attributes:
        keys: Key's id to the key.
        threshold: How many of them have to.
    """

    keys: Mapping[str, PublicKey]
    threshold: int


class KeySource(Protocol):
    """Where trusted keys come from: a file, or delegations of a TUF repository."""

    def role(self, payload_type: str) -> Role:
        """Return who may sign payloads of a media type.

        Raises:
            TrustError: Nobody may.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """Keys by role, of a file that comes with the agent.

    Attributes:
        roles: Role's name (a document's kind) to its keys.
    """

    roles: Mapping[str, Role]

    def role(self, payload_type: str) -> Role:
        """Return who may sign payloads of a media type.

        Raises:
            TrustError: Nobody may.
        """
        name = ROLES.get(payload_type)
        if name is None or name not in self.roles:
            raise TrustError(f"no key is trusted for payloads of type {show(payload_type)}")
        return self.roles[name]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        keys = {keyid: key for role in self.roles.values() for keyid, key in role.keys.items()}
        return canonical_bytes(
            {
                "schema_version": SCHEMA_VERSION,
                "keys": {keyid: key.to_dict() for keyid, key in keys.items()},
                "roles": {
                    name: {"keyids": sorted(role.keys), "threshold": role.threshold}
                    for name, role in self.roles.items()
                },
            }
        )

    @classmethod
    def load(cls, path: Path) -> TrustedKeys:
        """Read the file.

        Raises:
            TrustError: It is missing, or not what it should be.
        """
        try:
            return _trusted(parse_document(read_limited(path, MAX_FILE_BYTES), str(path)), path)
        except OSError as error:
            said = error.strerror or error
            raise TrustError(f"cannot read the trusted keys {path}: {said}", _REMEDY) from error
        except BundleError as error:
            raise TrustError(error.message, _REMEDY) from error


def verify(envelope: Envelope, source: KeySource) -> tuple[str, ...]:
    """Check that enough of those who may have signed an envelope.

    An id only says which key to try; a signature without one is tried with all.

    Returns:
        Ids of the keys that have, each once.

    Raises:
        TrustError: They have not, or nobody may sign such payloads.
    """
    role, signed = source.role(envelope.payload_type), envelope.signed_bytes
    accepted: set[str] = set()
    for one in envelope.signatures:
        if one.keyid:
            tried = {one.keyid: role.keys[one.keyid]} if one.keyid in role.keys else {}
        else:
            tried = dict(role.keys)
        accepted.update(
            keyid
            for keyid, key in tried.items()
            if keyid not in accepted and key.has_signed(signed, one.sig)
        )
    if len(accepted) < role.threshold:
        raise TrustError(
            f"{len(accepted)} of the keys trusted for {show(envelope.payload_type)} have signed, "
            f"{role.threshold} must",
            "Sign it with edgekit-fleet config sign, with keys that the device trusts",
        )
    return tuple(sorted(accepted))


def _trusted(data: Mapping[str, Any], path: Path) -> TrustedKeys:
    check_fields(data, {"keys": "object", "roles": "object"}, str(path))
    if len(data["keys"]) > MAX_KEYS or data.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"{path} is of another version, or has over {MAX_KEYS} keys")
    keys = {name: _named_key(name, key, path) for name, key in data["keys"].items()}
    return TrustedKeys({name: _role(name, row, keys) for name, row in data["roles"].items()})


def _named_key(name: str, data: Any, path: Path) -> PublicKey:
    key = PublicKey.from_dict(data, f"{path}: key {show(name)}")
    if key.keyid != name:
        raise TrustError(f"{path}: key {show(name)} has the id {key.keyid}", _REMEDY)
    return key


def _role(name: str, data: Any, keys: Mapping[str, PublicKey]) -> Role:
    where = f"role {show(name)}"
    check_fields(data, {"keyids": "list", "threshold": "positive"}, where)
    for keyid in data["keyids"]:
        if not isinstance(keyid, str) or keyid not in keys:
            raise BundleError(f"{where}: there is no key {show(keyid)}")
    named = {keyid: keys[keyid] for keyid in data["keyids"]}
    if data["threshold"] > len(named):
        raise BundleError(f"{where}: {data['threshold']} of {len(named)} keys can never sign")
    return Role(named, data["threshold"])
