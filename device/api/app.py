"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device.api.deliver import stream, whole
from device.api.errors import ApiError, explain
from device.api.replies import Kind, Reply
from device.api.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read_body,
    seeded,
)
from device.api.service import Service
from device.routing.header import RouteHeader
from device.runtime.answer import Answer, Piece, Wishes
from edgekit.errors import EdgekitError


def make_app(service: Service) -> Starlette:
    """Return the ASGI application of a service, which is stopped with it."""
    routes = Routes(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        await _stop(service)

    async def fail(request: Request, error: Exception) -> Response:
        del request
        known = error if isinstance(error, ApiError) else ApiError(500, "internal error")
        if isinstance(error, EdgekitError):
            known = explain(error)
        if isinstance(error, HTTPException):
            known = ApiError(error.status_code, str(error.detail))
        service.metrics.refused(known.status)
        return known.response()

    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/healthz", routes.health),
            Route("/readyz", routes.ready),
            Route("/metrics", routes.metrics),
        ],
        exception_handlers={
            ApiError: fail,
            EdgekitError: fail,
            HTTPException: fail,
            Exception: fail,
        },
        lifespan=lifespan,
        middleware=[Middleware(RouteHeader)],
    )


async def _stop(service: Service) -> None:
    """Let what runs end, here and elsewhere."""
    await asyncio.to_thread(service.stop)
    if service.settings.router is not None:
        await service.settings.router.close()


class Routes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        router = service.settings.router
        if router is not None:
            router.metrics.register(service.metrics.registry, router.budget)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        client, service = self._client(request), self._service
        body = read_body(await self._body(request), ChatRequest)
        service.require_model(body.model)
        params = body.params(service.own, body.max_completion_tokens or body.max_tokens)
        told = () if body.tool_choice == "none" else body.tools or ()
        prompt = service.render(body.messages, told, **body.chat_template_kwargs or {})
        wishes = await service.wishes(body, prompt)
        answers = [
            service.ask(prompt, one, wishes(), client) for one in seeded(params, body.n or 1)
        ]
        return await self._reply("chat", request, body, answers)

    async def completions(self, request: Request) -> Response:
        """Continue a text, or some."""
        client, service = self._client(request), self._service
        body = read_body(await self._body(request), CompletionRequest)
        service.require_model(body.model)
        params = body.params(service.own, body.max_tokens or 16)  # OpenAI's default
        adjustment = body.adjustment(service.model.session.vocab_size)
        answers = [
            service.ask(prompt, one, Wishes(adjustment, body.logprobs), client)
            for prompt in map(service.continue_text, body.prompts)
            for one in seeded(params, body.n or 1)
        ]
        return await self._reply("completion", request, body, answers)

    async def models(self, request: Request) -> Response:
        """List the one model."""
        self._client(request)
        service = self._service
        model = {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "edgekit",
            "max_model_len": service.model.session.max_context,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def tokenize(self, request: Request) -> Response:
        """Return the tokens of a text or a conversation."""
        self._client(request)
        body, service = read_body(await self._body(request), TokenizeRequest), self._service
        if body.messages is None:
            prompt = service.continue_text(body.prompt or "")
        else:
            prompt = service.render(body.messages)
        limit = service.model.session.max_context
        tokens = list(prompt.tokens)
        return JSONResponse({"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        self._client(request)
        body = read_body(await self._body(request), DetokenizeRequest)
        self._service.require_tokens(body.tokens, "tokens")
        return JSONResponse({"prompt": self._service.model.tokenizer.decode(body.tokens)})

    async def health(self, request: Request) -> Response:
        """Say whether the process is worth keeping."""
        del request
        alive = self._service.engine.is_alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 500)

    async def ready(self, request: Request) -> Response:
        """Say whether a request would be served."""
        del request
        ready = self._service.is_ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return the series in Prometheus' text form."""
        del request
        data = generate_latest(self._service.metrics.registry)
        return Response(data, media_type=CONTENT_TYPE_LATEST)

    def _client(self, request: Request) -> str:
        host = "" if request.client is None else request.client.host
        return self._service.client_of(request.headers.get("authorization"), host)

    async def _body(self, request: Request) -> bytes:
        """Return the body, if it is not too large; what is too large is not read to its end."""
        limit, data = self._service.settings.body_limit_bytes, bytearray()
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise ApiError(413, f"the body has more than {limit} bytes")
        return bytes(data)

    async def _reply(
        self,
        kind: Kind,
        request: Request,
        body: ChatRequest | CompletionRequest,
        answers: Sequence[Answer],
    ) -> Response:
        routed = await self._elsewhere(kind, request, body, answers)
        if routed is not None:
            return routed
        service = self._service
        reply = Reply(kind, service.name, service.model.tokenizer, answers)
        pieces = [self._pieces(answer) for answer in answers]
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream(reply, pieces, usage=usage)
        return await whole(request, reply, pieces)

    async def _elsewhere(
        self,
        kind: Kind,
        request: Request,
        body: ChatRequest | CompletionRequest,
        answers: Sequence[Answer],
    ) -> Response | None:
        """Return what the cloud answers; None if the engine is to answer."""
        router = self._service.settings.router
        if router is None:
            return None
        from device.routing.router import Asked  # noqa: PLC0415 - httpx, where it is used alone

        asked = Asked(kind, request, body, [answer.request for answer in answers])
        return await router.answer(asked, self._service)

    async def _pieces(self, answer: Answer) -> AsyncGenerator[Piece, None]:
        """Yield an answer's pieces and count it."""
        try:
            async with contextlib.aclosing(answer.pieces(self._service.engine)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if answer.request.queued_s is not None:
                self._service.metrics.ended(answer.request, time.monotonic())
                if self._service.settings.router is not None:
                    self._service.settings.router.served(answer.request)
