"""What a birth tells of who the device is: where it stands, and until when its certificate holds.

The cloud warns of a certificate that nobody renews by what is said here. Whether the certificate is
any good is the broker's to say.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path

from device.telemetry.config import TelemetryConfig
from edgekit.contracts.series import Number

logger = logging.getLogger(__name__)


def identity_details(config: TelemetryConfig) -> dict[str, str | Number | None]:
    """Return the site and the certificate's times, as a birth tells them.

    Args:
        config: Names the site and the certificate's file.
    """
    return {"site": config.site, **certificate_details(config.certificate)}


def certificate_details(path: Path) -> dict[str, int | None]:
    """Return when a certificate begins and ceases to hold, in milliseconds since 1970 UTC.

    Args:
        path: PEM file; the first certificate in it counts, its chain comes after it. One that
            cannot be read has no times: a session that needs it says what is wrong with it.
    """
    from cryptography import x509  # noqa: PLC0415 - takes memory, and only births need it

    try:
        certificate = x509.load_pem_x509_certificates(path.read_bytes())[0]
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (OSError, ValueError) as error:
        logger.warning("the birth tells no times of the certificate %s: %s", path, error)
        return {"certificate_not_before_ms": None, "certificate_not_after_ms": None}
    return {"certificate_not_before_ms": _ms(begin), "certificate_not_after_ms": _ms(end)}


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
