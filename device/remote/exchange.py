"""HTTPS with the fleet's service: what waits for the device, and what it sends. Bounded in all.

Each exchange makes its own connection and reads the certificates again: there are a few a day, and
a certificate that was renewed counts at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlencode, urlsplit

import httpx

from device.remote.config import FleetConfig
from device.remote.errors import RefusedError
from device.remote.remote import MAX_ANSWER_BYTES
from edgekit import __version__
from edgekit.contracts.fields import show
from edgekit.errors import first_line

PENDING: Final = "/v1/pending"
_AGAIN: Final = "Look at the link and at the fleet's service; the device tries again"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What waits for the device.

    Attributes:
        body: As it came.
        etag: The service's name of it; empty if it gave none.
    """

    body: bytes
    etag: str


class Exchange:
    """Asks the service.

    Args:
        config: Where it is, and who the device is.
    """

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        query = urlencode([("cohort", cohort) for cohort in config.cohorts])
        base = config.url.rstrip("/")
        self._url = f"{base}{PENDING}" + (f"?{query}" if query else "")

    async def pending(self, etag: str = "") -> Answer | None:
        """Return what waits; None if that is what had this name.

        Raises:
            RefusedError: The service is not there, is slow, or answers too much.
            ConfigError: A certificate cannot be read.
        """
        headers = {"if-none-match": etag} if etag else {}
        return await self._bounded(lambda client: self._ask(client, headers))

    async def upload(self, url: str, data: bytes) -> None:
        """Put a diagnostic bundle to an address, if the owner lets it go there.

        Raises:
            RefusedError: The address is none that is allowed, or does not take it.
            ConfigError: A certificate cannot be read.
        """
        self._check_address(url)
        await self._bounded(lambda client: _put(client, url, data))

    def _check_address(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = f"{parts.hostname}:{parts.port or 443}"
        except ValueError as error:
            raise RefusedError("setting", f"{show(url)} is no address: {error}") from error
        plain = parts.scheme == "https" and parts.username is None and url.isprintable()
        if not plain or host not in self._config.allowed_hosts:
            raise RefusedError(
                "setting",
                f"diagnostics may not be sent to {show(url)}",
                "Name its host in upload_hosts of [fleet] on the device",
            )

    async def _bounded(self, work: Callable[[httpx.AsyncClient], Awaitable[T]]) -> T:
        """Do something over a connection of its own, in the time there is for it."""
        limit_s = self._config.timeout_s
        client = httpx.AsyncClient(
            verify=self._config.tls(),
            timeout=limit_s,
            trust_env=False,
            follow_redirects=False,
            headers={
                # Decompressed, some bytes could be any number of them.
                "accept-encoding": "identity",
                "user-agent": f"edgekit/{__version__}",
            },
        )
        try:
            async with client:
                return await asyncio.wait_for(work(client), limit_s)
        except (asyncio.TimeoutError, httpx.TimeoutException) as error:
            raise RefusedError("slow", f"no answer in {limit_s:g} s", _AGAIN) from error
        except httpx.HTTPError as error:
            raise RefusedError("unreachable", first_line(error), _AGAIN) from error

    async def _ask(self, client: httpx.AsyncClient, headers: Mapping[str, str]) -> Answer | None:
        async with client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED:
                return None
            _check_status(response, httpx.codes.OK)
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise RefusedError(
                        "too_large", f"the answer has over {MAX_ANSWER_BYTES} bytes", _AGAIN
                    )
            return Answer(bytes(body), response.headers.get("etag", ""))


async def _put(client: httpx.AsyncClient, url: str, data: bytes) -> None:
    headers = {"content-type": "application/zstd"}
    async with client.stream("PUT", url, content=data, headers=headers) as response:
        _check_status(response, httpx.codes.CREATED)


def _check_status(response: httpx.Response, wanted: int) -> None:
    """Refuse an answer of another status; its text is not read, it may be of any length."""
    if response.status_code != wanted:
        raise RefusedError(
            "unreachable", f"{response.request.method} was answered {response.status_code}", _AGAIN
        )
