"""An OpenAI-compatible endpoint as a client asks it: models, token counts, streamed answers.

Source: OpenAI's published OpenAPI description (github.com/openai/openai-openapi); ``/tokenize`` as
vLLM has it, beside ``/v1``.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import httpx

from edgekit.benchmark.refusals import broken, refusal
from edgekit.benchmark.samples import Reading, Sample
from edgekit.benchmark.sse import EventDecoder
from edgekit.errors import EndpointError

if TYPE_CHECKING:
    from typing_extensions import Self

Kind = Literal["completions", "chat"]
PATHS: dict[Kind, str] = {"completions": "/completions", "chat": "/chat/completions"}
CONNECT_S = 10.0
_MISSING = {404, 405, 501}
"""Statuses of a path that a server does not have."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        url: The base URL, which mostly ends in ``/v1``.
        kind: Which of the two is asked.
        model: The model's name; empty until it is chosen.
        api_key: Sent as a bearer token.
        timeout_s: Longest wait for the next byte.
        keep_alive: Whether a connection is used again.
        fields: Further fields of a request's body.
    """

    url: str
    kind: Kind = "completions"
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    keep_alive: bool = True
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


class Client:
    """Asks an endpoint; an async context manager.

    Args:
        endpoint: Where and how.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._base = endpoint.url.rstrip("/")
        key = endpoint.api_key
        self._http = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(endpoint.timeout_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None if endpoint.keep_alive else 0,
            ),
            trust_env=not endpoint.is_local,  # a proxy is for other machines
        )

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def models(self) -> list[str]:
        """Return the names of the models.

        Raises:
            EndpointError: The server is not there, refuses, or is none of OpenAI's kind.
        """
        url = f"{self._base}/models"
        response = await self._request("GET", url)
        if response.status_code != 200:
            raise refusal(url, self.endpoint.model, response, response.content)
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise EndpointError(
                f"{url} does not answer as OpenAI's does",
                "Give the base URL, which mostly ends in /v1",
            ) from error

    async def count(self, prompt: str) -> int | None:
        """Return how many tokens a prompt has for the server; None if it has no ``/tokenize``.

        Raises:
            EndpointError: The server is not there, or refuses.
        """
        url = f"{self._base.removesuffix('/v1')}/tokenize"
        response = await self._request("POST", url, self._prompt(prompt))
        if response.status_code in _MISSING:
            return None
        if response.status_code != 200:
            raise refusal(url, self.endpoint.model, response, response.content)
        try:
            count: Any = response.json()["count"]
        except (ValueError, KeyError, TypeError):
            return None  # a /tokenize of another kind
        return count if isinstance(count, int) else None

    async def ask(
        self, prompt: str, max_tokens: int, on_first: Callable[[], None] | None = None
    ) -> Sample:
        """Ask for one streamed answer and return what it took.

        Args:
            prompt: The text, or a user's message.
            max_tokens: Most of the answer.
            on_first: Called when its first text comes.

        Raises:
            EndpointError: There is no whole answer, or nothing that says how long it is.
        """
        url = self._base + PATHS[self.endpoint.kind]
        body = {
            **self._prompt(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.endpoint.fields,
        }
        content, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        begun_s = time.perf_counter()
        reading, decoder = Reading(url, begun_s, on_first), EventDecoder()
        try:
            async with self._http.stream("POST", url, content=content, headers=headers) as response:
                await self._require_stream(url, response)
                async for piece in response.aiter_bytes():
                    now_s = time.perf_counter()
                    for data in decoder.feed(piece):
                        reading.take(data, now_s)
        except httpx.HTTPError as error:
            raise broken(url, error, self.endpoint.timeout_s) from error
        return reading.sample()

    async def _require_stream(self, url: str, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise refusal(url, self.endpoint.model, response, await response.aread())
        kind = response.headers.get("content-type", "nothing")
        if not kind.startswith("text/event-stream"):
            raise EndpointError(
                f"{url} answers with {kind}, not with a stream of events",
                "Bench a server that streams, and give its base URL, which mostly ends in /v1",
            )

    def _prompt(self, prompt: str) -> dict[str, Any]:
        """Return the fields that say what is asked of whom."""
        if self.endpoint.kind == "chat":
            messages = [{"role": "user", "content": prompt}]
            return {"model": self.endpoint.model, "messages": messages}
        return {"model": self.endpoint.model, "prompt": prompt}

    async def _request(
        self, method: str, url: str, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        try:
            return await self._http.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise broken(url, error, self.endpoint.timeout_s) from error
