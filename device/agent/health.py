"""Asks a running agent how it is, as a container's health check; standard library only."""

from __future__ import annotations

import http.client
import ssl
from typing import Final

from device.agent.config import AgentConfig

TIMEOUT_S: Final = 4.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not listened on


def ask_health(config: AgentConfig) -> int:
    """Return 0 if ``/healthz`` answers 200, else 1.

    The certificate is not checked: the agent asks itself. It has none of its own to show, so where
    clients need one (``tls_client_ca``) this always fails.

    Args:
        config: Of the agent that runs.
    """
    host = _ANY.get(config.host, config.host)
    connection: http.client.HTTPConnection
    if config.tls_certificate is None:
        connection = http.client.HTTPConnection(host, config.port, timeout=TIMEOUT_S)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            host, config.port, timeout=TIMEOUT_S, context=context
        )
    try:
        connection.request("GET", "/healthz")
        return 0 if connection.getresponse().status == http.client.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()
