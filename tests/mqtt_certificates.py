"""Certificate authorities for tests: they issue, revoke and write revocation lists, as files."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_HOUR = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key.

    Attributes:
        name: Common name.
        certificate: PEM file.
        key: PEM file, not encrypted.
        serial: Of the certificate.
    """

    name: str
    certificate: Path
    key: Path
    serial: int


class Authority:
    """Signs certificates of P-256 keys.

    Args:
        folder: Where all files go; it is made.
        name: Its common name, and what its files begin with.

    Attributes:
        certificate: Its own certificate, a PEM file.
        crl: Its revocation list, a PEM file, empty at first.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(f"{name} authority")
        self._revoked: list[int] = []
        self._issued = 0
        self.certificate = folder / f"{name}-ca.pem"
        self.crl = folder / f"{name}-crl.pem"
        usage = _usage(sign=False)
        self._self_signed = (
            self._builder(self._name, self._key.public_key(), _HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate.write_bytes(self._self_signed.public_bytes(serialization.Encoding.PEM))
        self.revoke()

    def issue(
        self,
        name: str,
        *,
        server: bool = False,
        lifetime: dt.timedelta = _HOUR,
        addresses: Sequence[str] = ("127.0.0.1",),
    ) -> Identity:
        """Return a new key with its certificate.

        Args:
            name: Common name.
            server: For a server; else for a client.
            lifetime: From now; negative for one that has ended.
            addresses: Of a server, beside ``localhost``.
        """
        self._issued += 1
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            self._builder(_name(name), key.public_key(), lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        if server:
            found = [x509.IPAddress(ipaddress.ip_address(one)) for one in sorted({*addresses})]
            names = x509.SubjectAlternativeName([x509.DNSName("localhost"), *found])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = f"{name.replace('/', '-')}-{self._issued}"
        identity = Identity(
            name,
            self._folder / f"{stem}.pem",
            self._folder / f"{stem}-key.pem",
            certificate.serial_number,
        )
        identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return identity

    def bundle(self) -> Path:
        """Return a PEM file of its certificate and its key, for a program that issues more."""
        path = self.certificate.with_name(f"{self.certificate.stem}-and-key.pem")
        path.touch(mode=0o600)
        path.write_bytes(
            self.certificate.read_bytes()
            + self._key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def revoke(self, *identities: Identity, lifetime: dt.timedelta = _HOUR) -> None:
        """Write the revocation list anew, with some more certificates.

        Args:
            identities: They are revoked.
            lifetime: Of the list, from now.
        """
        self._revoked += [identity.serial for identity in identities]
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(min(now, now + lifetime) - _HOUR)
            .next_update(now + lifetime)
        )
        for serial in self._revoked:
            revoked = x509.RevokedCertificateBuilder(serial, now)
            builder = builder.add_revoked_certificate(revoked.build())
        crl = builder.sign(self._key, hashes.SHA256())
        self.crl.write_bytes(crl.public_bytes(serialization.Encoding.PEM))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, lifetime: dt.timedelta
    ) -> x509.CertificateBuilder:
        """Return what all certificates have in common."""
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, now + lifetime) - _HOUR)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, sign: bool) -> x509.KeyUsage:
    """Return the key usage of a leaf (``sign``) or of an authority."""
    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=not sign,
        crl_sign=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
