"""The application that stands before the models: one for the process, whatever it serves.

It answers for the process (health, metrics, the list of models) and hands every other request, once
its body is there, to the model of the moment. Light: no model, no NumPy.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from device.agent.models import NO_MODEL, Models
from device.api.deadline import DEADLINE_HEADER, deadline_of
from device.api.errors import ApiError, handlers
from device.api.log import JsonLog, RequestLog
from device.api.record import current
from device.api.watch import ClientLeftError
from device.routing.header import RouteHeader
from device.routing.said import PRIVACY_HEADER

if TYPE_CHECKING:  # NumPy comes with it
    from device.api.service import Service


def make_front(models: Models, log: JsonLog, *, vllm_metrics: bool = False) -> ASGIApp:
    """Return the ASGI application of a process; the models are stopped with it.

    Args:
        models: What it serves.
        log: Where requests are told.
        vllm_metrics: Tell the metrics under vLLM's names, too.
    """
    front, router = Front(models, vllm_metrics=vllm_metrics), models.settings.router
    if router is not None:
        router.metrics.register(models.metrics.registry, router.budget)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        await models.stop()
        if router is not None:
            await router.close()

    def refused(status: int) -> None:
        name = "" if models.current is None else models.current.name
        models.metrics.refused.labels(name, str(status)).inc()

    app: ASGIApp = Starlette(
        routes=[
            Route("/healthz", front.health),
            Route("/readyz", front.ready),
            Route("/metrics", front.metrics),
            Route("/v1/models", front.models),
            Route("/v1/models/{name:path}", front.model),
            Mount("/", front.ask),
        ],
        exception_handlers=handlers(refused),
        lifespan=lifespan,
    )
    return RequestLog(_with_cors(RouteHeader(app), models.settings.cors_origins), log)


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Return an application that pages of some origins may ask, with each header it is told by."""
    if not origins:
        return app
    asked = ("authorization", "content-type", "x-request-id", DEADLINE_HEADER, PRIVACY_HEADER)
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=asked,
        expose_headers=("x-request-id", "x-edgekit-route", "retry-after"),
    )


class Front:
    """The handlers."""

    def __init__(self, models: Models, *, vllm_metrics: bool) -> None:
        self._models, self._vllm = models, vllm_metrics

    async def health(self, request: Request) -> Response:
        """Say whether the process is worth keeping."""
        del request
        fault = self._models.fault()
        return JSONResponse(
            {"status": "failed" if fault else "ok", "error": fault or None}, 500 if fault else 200
        )

    async def ready(self, request: Request) -> Response:
        """Say whether a request would be served at once, and by what."""
        del request
        told = self._models.describe()
        return JSONResponse(told, 200 if self._models.is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the series in Prometheus' text form."""
        del request
        data = self._models.metrics.exposition(vllm=self._vllm)
        return Response(data, media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        """List the one model, the next while they change in turn; none if there is none."""
        self._identify(request.scope)
        try:
            async with self._models.lease(self._deadline_s(request.scope)) as hosted:
                model = _described(hosted.service)
        except ApiError as error:
            if error.code != NO_MODEL:
                raise
            return JSONResponse({"object": "list", "data": []})
        return JSONResponse({"object": "list", "data": [model]})

    async def model(self, request: Request) -> Response:
        """Tell of a model by its name.

        Raises:
            ApiError: It is not served.
        """
        self._identify(request.scope)
        async with self._models.lease(self._deadline_s(request.scope)) as hosted:
            hosted.service.require_model(request.path_params["name"])
            return JSONResponse(_described(hosted.service))

    async def ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request to the model of the moment."""
        self._identify(scope)
        deadline_s = self._deadline_s(scope)
        # Before a model is taken: who sends its body byte by byte must keep none from being
        # changed. For how long it may come is a matter of its connection (``device.api.limits``).
        body = await _body(receive, self._models.settings.body_limit_bytes)

        async def told() -> Message:
            return body.pop() if body else await receive()

        async with self._models.lease(deadline_s) as hosted:
            await hosted.app(scope, told, send)

    def _deadline_s(self, scope: Scope) -> float:
        """Return when a request is given up, and note it."""
        record, timeout_s = current(), self._models.settings.timeout_s
        arrived_s = time.monotonic() if record is None else record.arrived_s
        deadline_s = deadline_of(Headers(scope=scope), arrived_s, timeout_s)
        if record is not None:
            record.deadline_s = deadline_s
        return deadline_s

    def _identify(self, scope: Scope) -> None:
        """Note whose a request is.

        Raises:
            ApiError: Keys are asked for and it has none of them.
        """
        host = scope["client"][0] if scope.get("client") else ""
        headers = dict(scope["headers"])
        authorization = headers.get(b"authorization", b"").decode("latin-1")
        client = self._models.settings.client_of(authorization, host)
        record = current()
        if record is not None:
            record.client = client


def _described(service: Service) -> dict[str, Any]:
    """Return a model as OpenAI has it, and its context as vLLM names that."""
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "edgekit",
        "max_model_len": service.model.session.max_context,
    }


async def _body(receive: Receive, limit_bytes: int) -> list[Message]:
    """Return a whole body in one message, or the beginning of one that is larger than is served.

    Raises:
        ClientLeftError: The client went away.
    """
    data, more = bytearray(), True
    while more and len(data) <= limit_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return [{"type": "http.request", "body": bytes(data), "more_body": more}]
