"""Certificates of simulated devices, for tests and demonstrations.

A real device makes its own key, and an operator's authority signs it; nothing here is for that.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.contracts.topics import Device
from edgekit.errors import ConfigError, StorageError, first_line

LIFETIME = dt.timedelta(days=30)
_EARLIER = dt.timedelta(hours=1)
"""Clocks of a test's machines may differ."""


class Authority:
    """Signs devices' certificates.

    Args:
        path: PEM file of its certificate and its key.

    Raises:
        ConfigError: The file has not both, or they are of no use.
    """

    def __init__(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            self._certificate = x509.load_pem_x509_certificate(data)
            key = serialization.load_pem_private_key(data, password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is no authority: {first_line(error)}",
                "Name a PEM file with a certificate and its key, without a password",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"the key of {path} is not an elliptic curve's")
        self._key = key

    def issue(self, folder: Path, devices: Iterable[Device]) -> int:
        """Make keys and certificates of the devices that have none.

        Args:
            folder: Gets ``NAME.pem`` and ``NAME-key.pem``; it is made.
            devices: Which.

        Returns:
            How many were made.

        Raises:
            StorageError: The folder cannot be written.
        """
        made = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for device in devices:
                certificate = folder / f"{device.device}.pem"
                if not certificate.exists():
                    self._issue(device, certificate, folder / f"{device.device}-key.pem")
                    made += 1
        except OSError as error:
            raise StorageError(f"cannot write into {folder}: {error.strerror}") from error
        return made

    def _issue(self, device: Device, certificate: Path, key: Path) -> None:
        """Write a key, then its certificate, whose being there says that both are."""
        made = ec.generate_private_key(ec.SECP256R1())
        handle = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(
                made.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
        now = dt.datetime.now(dt.timezone.utc)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device.path)])
        client = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        signed = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._certificate.subject)
            .public_key(made.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(client, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        partial = certificate.with_suffix(".partial")
        partial.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        partial.rename(certificate)
