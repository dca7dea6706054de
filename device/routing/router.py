"""The router: what the rules look at, and what becomes of a request that leaves."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from device.api.errors import ApiError
from device.api.watch import ClientLeftError, event_stream, first_of, unless_left
from device.routing.breaker import Breaker
from device.routing.budget import Budget
from device.routing.cloud import Cloud
from device.routing.config import RoutingConfig
from device.routing.errors import (
    BudgetSpentError,
    CloudBusyError,
    CloudError,
    CloudLateError,
    CloudRefusedError,
    CloudUnreachableError,
)
from device.routing.header import ROUTE_KEY
from device.routing.metrics import RoutingMetrics
from device.routing.policy import Policy
from device.routing.remote import tightened
from device.routing.rules import Decision, Facts, LocalReason, decide
from device.routing.said import is_pinned, names_tokens
from device.routing.translate import outgoing
from device.routing.wait import ServiceTimes
from edgekit.errors import EdgekitError, StorageError

if TYPE_CHECKING:  # NumPy comes with them: a server may stand without a model
    from device.api.replies import Kind
    from device.api.schema import ChatRequest, CompletionRequest
    from device.api.service import Service
    from device.runtime.request import Request as EngineRequest

_LOG = logging.getLogger(__name__)
_PATHS: dict[Kind, str] = {"chat": "/chat/completions", "completion": "/completions"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was read and checked, and has not been given to the engine.

    Attributes:
        kind: Of which route.
        request: As it came.
        body: Its body.
        engine: What the engine would get.
    """

    kind: Kind
    request: Request
    body: ChatRequest | CompletionRequest
    engine: Sequence[EngineRequest]


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What is sent.

    Attributes:
        path: After the endpoint's base URL.
        body: JSON.
        name: The model's name here.
        takes: Bytes of the budget to set aside.
        deadline_s: Of the monotonic clock.
    """

    path: str
    body: bytes
    name: str
    takes: int
    deadline_s: float


class Router:
    """Sends requests to a cloud endpoint when the rules say so and the policy lets them.

    Args:
        config: The endpoint, and what the device's owner allows.
        link: Says at once whether the link is up; None takes it for down for a while after a
            connection that failed.

    Attributes:
        budget: The day's bytes.
        breaker: Of the endpoint.
        metrics: What went where.

    Raises:
        StorageError: The budget's file, the key or the certificates cannot be read.
    """

    def __init__(self, config: RoutingConfig, link: Callable[[], bool] | None = None) -> None:
        self._config = config
        self._policy = config.policy
        self.metrics = RoutingMetrics()
        self.budget = Budget(Path(config.state_file), self._policy.daily_bytes)
        self.breaker = Breaker(config.failures, config.backoff_s, config.backoff_max_s)
        try:
            self._cloud = Cloud(config, self.budget, self.metrics.carried)
        except StorageError:
            self.budget.close()
            raise
        self._times = ServiceTimes()
        self._link, self._unreachable_until_s = link, -math.inf

    @property
    def policy(self) -> Policy:
        """What is allowed now."""
        return self._policy

    def tighten(self, remote: Policy) -> None:
        """Let a remote policy take away from what the owner allows; the last one counts.

        Call it in the server's event loop. Requests that are with the cloud already may end.
        """
        self._policy = tightened(self._config, remote)
        self.budget.limit = self._policy.daily_bytes

    def served(self, request: EngineRequest) -> None:
        """Learn from an answer of the engine how long they take."""
        self._times.ended(request, time.monotonic())

    async def answer(self, asked: Asked, service: Service) -> Response | None:
        """Return the cloud's answer; None leaves the request to the engine.

        Raises:
            ApiError: The prompt does not fit here, and the cloud failed or refused it.
            ClientLeftError: The client went away before the cloud answered.
        """
        now_s = time.monotonic()
        parcel = self._parcel(asked, service.name)
        decision = decide(self._facts(asked, service, parcel, now_s), self._policy)
        if decision.route == "local":
            self._stays(asked, decision)
            return None
        ticket = self.breaker.begin()  # at once: another request may ask before this one is sent
        try:
            send = self._stream if asked.body.stream else self._whole
            response = await send(asked.request, parcel, ticket)
        except ClientLeftError:
            self.breaker.abandoned(ticket)  # perhaps before anything was tried
            self.metrics.routed(decision)
            raise
        except (CloudError, StorageError) as error:
            self._falls_back(asked, decision, error)
            return None
        self.metrics.routed(decision)
        asked.request.scope[ROUTE_KEY] = decision.header
        return response

    async def cut_off(self) -> None:
        """Close the connections: answers that are on their way end with an error."""
        await self._cloud.close()

    async def close(self) -> None:
        """Close the connections and write down what was used."""
        await self._cloud.close()
        self.budget.close()

    def _parcel(self, asked: Asked, name: str) -> _Parcel:
        path, body = _PATHS[asked.kind], outgoing(asked.body, self._config.model)
        takes = self._cloud.sends(path, body) + self._config.answer_bytes
        ends = (one.deadline_s for one in asked.engine if one.deadline_s is not None)
        return _Parcel(path, body, name, takes, min(ends, default=math.inf))

    def _facts(self, asked: Asked, service: Service, parcel: _Parcel, now_s: float) -> Facts:
        return Facts(
            pinned=is_pinned(asked.request, asked.body),
            client=asked.engine[0].client,
            names_tokens=names_tokens(asked.body),
            prompt_tokens=max(len(one.prompt) for one in asked.engine),
            context_tokens=service.model.session.max_context,
            wait_s=self._times.wait_s(service.engine.load),
            service_s=self._times.mean_s,
            left_s=parcel.deadline_s - now_s,
            max_wait_s=self._config.wait_limit_s,
            link=self._link() if self._link else now_s >= self._unreachable_until_s,
            bytes_wanted=parcel.takes,
            bytes_left=self.budget.unreserved,
            circuit=self.breaker.passes(),
        )

    def _stays(self, asked: Asked, decision: Decision) -> None:
        """Note that the engine is to answer."""
        self.metrics.routed(decision)
        asked.request.scope[ROUTE_KEY] = decision.header

    def _falls_back(self, asked: Asked, decision: Decision, error: EdgekitError) -> None:
        """Note that the engine is to answer what the cloud did not, if it can."""
        _LOG.warning("%s; wanted for: %s", error, decision.wanted)
        reason: LocalReason = "failed"
        if isinstance(error, CloudRefusedError):
            reason = "refused"
        elif isinstance(error, BudgetSpentError | StorageError):
            reason = "budget"
        if decision.wanted == "context" and reason != "budget":
            self.metrics.routed(decision)
            asked.request.scope[ROUTE_KEY] = decision.header
            raise _told(error, "the prompt does not fit the context here, and ")
        self._stays(asked, Decision("local", reason, decision.wanted))

    async def _whole(self, request: Request, parcel: _Parcel, ticket: object) -> Response:
        async with self._attempt(parcel.takes, ticket):
            asking = self._cloud.ask(parcel.path, parcel.body, parcel.name, parcel.deadline_s)
            data = await unless_left(request, asking)
        return Response(data, media_type="application/json")

    async def _stream(self, request: Request, parcel: _Parcel, ticket: object) -> Response:
        """Return a streaming response once its first event is there: until then all can change."""
        pieces = self._pieces(parcel, ticket)
        head = await first_of(request, pieces)

        async def events() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(pieces):
                yield head
                try:
                    async for piece in pieces:
                        yield piece
                except (CloudError, StorageError) as error:
                    _LOG.warning("%s, in the middle of an answer", error)
                    yield b"data: " + msgspec.json.encode(_told(error).body()) + b"\n\n"

        return event_stream(events())

    async def _pieces(self, parcel: _Parcel, ticket: object) -> AsyncGenerator[bytes, None]:
        async with self._attempt(parcel.takes, ticket):
            stream = self._cloud.stream(parcel.path, parcel.body, parcel.name, parcel.deadline_s)
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    self.breaker.answered(ticket)
                    yield piece

    @contextlib.asynccontextmanager
    async def _attempt(self, takes: int, ticket: object) -> AsyncIterator[None]:
        """Set bytes aside for a request, and tell the breaker what became of it."""
        try:
            async with self.budget.reserved(takes):
                yield
        except CloudRefusedError:
            self.breaker.succeeded()
            raise
        except (BudgetSpentError, CloudBusyError, CloudLateError):
            self.breaker.abandoned(ticket)
            raise
        except CloudError as error:
            if isinstance(error, CloudUnreachableError):
                self._unreachable_until_s = time.monotonic() + self._config.link_pause_s
            self.breaker.failed(ticket, error.retry_after_s)
            raise
        except BaseException:  # the client left, or the disk is full
            self.breaker.abandoned(ticket)
            raise
        else:
            self.breaker.succeeded()


def _told(error: EdgekitError, before: str = "") -> ApiError:
    """Return what a client is told of a cloud that did not answer."""
    message = before + (error.told if isinstance(error, CloudError) else error.message)
    if isinstance(error, CloudRefusedError):
        return ApiError(error.status, message, code="cloud_refused")
    code = "cloud_budget_spent" if isinstance(error, BudgetSpentError) else "cloud_failed"
    return ApiError(502, message, code=code)
