"""Keys: who has to have signed what, and how a key stands on the disk."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from remote_cases import KEY, SECOND, STRANGER, command, key_of, signed, trusting

from edgekit.contracts.envelope import Envelope, Signature
from edgekit.contracts.signed import COMMAND_TYPE, CONFIGURATION_TYPE
from edgekit.errors import StorageError, TrustError
from edgekit.signing import SigningKey, TrustedKeys, verify

LIVE = command("live", {"minutes": 1})


def test_a_signature_is_rfc_8032s() -> None:
    """Test 2 of RFC 8032, 7.1: key, message and signature as printed there."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    wanted = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)))
    assert key.public.raw.hex() == public
    assert key.public.has_signed(b"\x72", bytes.fromhex(wanted))
    assert not key.public.has_signed(b"\x73", bytes.fromhex(wanted))


def test_a_keys_id_is_the_one_that_tuf_gives_it() -> None:
    """It is the sha256 of the canonical JSON of the key as TUF writes it."""
    import hashlib

    text = (
        '{"keytype":"ed25519","keyval":{"public":"' + KEY.public.raw.hex() + '"},'
        '"scheme":"ed25519"}'
    )
    assert KEY.public.keyid == hashlib.sha256(text.encode()).hexdigest()


def test_enough_trusted_keys_must_have_signed() -> None:
    """Of two keys of which both must sign, one is not enough, nor one that signs twice."""
    both = trusting(KEY, SECOND, threshold=2)
    assert len(verify(signed(LIVE, KEY, SECOND), both)) == 2
    alone = signed(LIVE, KEY)
    twice = replace(alone, signatures=alone.signatures * 2)
    nameless = replace(
        alone, signatures=(*alone.signatures, Signature("", alone.signatures[0].sig))
    )
    borrowed = Signature(SECOND.public.keyid, alone.signatures[0].sig)
    for envelope in (alone, twice, nameless, replace(alone, signatures=(borrowed, borrowed))):
        with pytest.raises(TrustError, match="2 must"):
            verify(envelope, both)


def test_a_keys_id_is_a_hint_and_no_more() -> None:
    """A signature without an id is tried with every key; a stranger's beside it does no harm."""
    envelope = signed(LIVE, STRANGER, KEY)
    nameless = tuple(Signature("", one.sig) for one in envelope.signatures)
    assert verify(envelope, trusting(KEY, SECOND)) == (KEY.public.keyid,)
    assert verify(replace(envelope, signatures=nameless), trusting(KEY)) == (KEY.public.keyid,)
    with pytest.raises(TrustError):
        verify(signed(LIVE, STRANGER), trusting(KEY))


def test_a_document_of_one_kind_is_none_of_another() -> None:
    """The type is signed: a command that is called a configuration is not one."""
    envelope = replace(signed(LIVE), payload_type=CONFIGURATION_TYPE)
    with pytest.raises(TrustError, match="0 of the keys"):
        verify(envelope, trusting(KEY))
    with pytest.raises(TrustError, match="no key is trusted for"):
        verify(Envelope("application/json", b"{}"), trusting(KEY))


def test_any_other_byte_breaks_the_signature() -> None:
    """Every single bit that differs is found."""
    envelope = signed(LIVE)
    for place in range(0, 8 * len(envelope.payload), 7):
        changed = bytearray(envelope.payload)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(TrustError):
            verify(replace(envelope, payload=bytes(changed)), trusting(KEY))


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    """It is written with mode 0600, never over another, and not used once others may read it."""
    path = tmp_path / "key.pem"
    KEY.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == KEY.public
    with pytest.raises(StorageError, match="never overwritten"):
        SECOND.save(path)
    assert SigningKey.load(path).public == KEY.public
    path.chmod(0o640)
    with pytest.raises(TrustError, match="chmod 600"):
        SigningKey.load(path)


def test_what_is_no_key_is_refused(tmp_path: Path) -> None:
    """Another algorithm, a password, a text, a missing file."""
    pem, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    other = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = serialization.PrivateFormat.PKCS8
    locked = serialization.BestAvailableEncryption(b"secret")
    texts = {
        "no Ed25519": other.private_bytes(pem, pkcs8, no_password),
        "without a password": other.private_bytes(pem, pkcs8, locked),
        "no private key": b"hello",
    }
    for said, text in texts.items():
        path = tmp_path / said.replace(" ", "-")
        path.write_bytes(text)
        path.chmod(0o600)
        with pytest.raises(TrustError, match=said):
            SigningKey.load(path)
    with pytest.raises(StorageError, match="cannot read the key"):
        SigningKey.load(tmp_path / "none")


def test_trusted_keys_read_back(tmp_path: Path) -> None:
    """The file that is installed says who may sign what, and how many must."""
    path = tmp_path / "trusted.json"
    keys = trusting(KEY, SECOND, threshold=2)
    path.write_bytes(keys.to_bytes())
    assert TrustedKeys.load(path) == keys
    assert TrustedKeys.load(path).role(COMMAND_TYPE).threshold == 2


def test_trusted_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    """A file of keys that promises what it cannot hold is refused with the place."""
    path = tmp_path / "trusted.json"
    with pytest.raises(TrustError, match="cannot read the trusted keys"):
        TrustedKeys.load(path)
    good = json.loads(trusting(KEY).to_bytes())
    keyid = KEY.public.keyid
    other = {"keytype": "rsa", "scheme": "rsa-pss", "keyval": {"public": "00"}}
    short = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": "00"}}
    cases = {
        "has the id": {**good, "keys": {"0" * 64: good["keys"][keyid]}},
        "not ed25519": {**good, "keys": {keyid: other}},
        "not 32 bytes": {**good, "keys": {keyid: short}},
        "can never sign": {**good, "roles": {"command": {"keyids": [keyid], "threshold": 2}}},
        "there is no key": {**good, "roles": {"command": {"keyids": ["f"], "threshold": 1}}},
        "integer from 1": {**good, "roles": {"command": {"keyids": [keyid], "threshold": 0}}},
        "another version": {**good, "schema_version": 2},
        "lacks 'roles'": {"keys": {}},
    }
    for said, data in cases.items():
        path.write_text(json.dumps(data))
        with pytest.raises(TrustError, match=said):
            TrustedKeys.load(path)


def test_a_key_signs_an_envelope_once() -> None:
    """Signing again takes the place of the signature before it, beside those of others."""
    envelope = key_of(4).sign(KEY.sign(signed(LIVE, KEY, SECOND)))
    assert [one.keyid for one in envelope.signatures] == [
        key.public.keyid for key in (SECOND, KEY, key_of(4))
    ]
