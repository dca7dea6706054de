"""Contexts of TLS from PEM files; nobody is asked for a key's password."""

from __future__ import annotations

import ssl
from pathlib import Path

from edgekit.errors import ConfigError


def load_identity(context: ssl.SSLContext, certificate: Path | str, key: Path | str) -> None:
    """Have a context show a certificate.

    Args:
        context: The context.
        certificate: The certificate, and those between it and its authority.
        key: Its key.

    Raises:
        OSError: A file cannot be read, is none, or the key is another certificate's.
        ValueError: The key has a password.
    """
    context.load_cert_chain(certificate, key, password=_no_password)


def server_context(
    certificate: Path, key: Path, client_ca: Path | None = None, crl: Path | None = None
) -> ssl.SSLContext:
    """Return the context of a server: TLS 1.2 or newer.

    Args:
        certificate: As of :func:`load_identity`.
        key: As of there.
        client_ca: Authorities of clients' certificates, which are then demanded.
        crl: Certificates that they have revoked; read once.

    Raises:
        ConfigError: A file cannot be read, is none, or the key is another certificate's.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load_identity(context, certificate, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        if crl is not None:
            context.load_verify_locations(crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(str(one) for one in (certificate, key, client_ca, crl) if one is not None)
        raise ConfigError(
            f"TLS cannot use {files}: {error}", "Give PEM files, the key without a password"
        ) from error
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")  # else OpenSSL would ask the terminal
