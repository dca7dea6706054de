"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from device.api.errors import ApiError, explain
from device.api.replies import Kind, Reply, event
from device.api.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read_body,
)
from device.api.service import Service
from device.runtime.answer import Answer
from edgekit.errors import EdgekitError
from edgekit.text.reasoning import TextPiece

CLIENT_LEFT = 499
"""nginx's status of a request whose client went away; nobody reads it but the log."""


def make_app(service: Service) -> Starlette:
    """Return the ASGI application of a service, which is stopped with it."""
    routes = Routes(service)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        await asyncio.to_thread(service.stop)

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
    )


class Routes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        client = self._client(request)
        body = read_body(await self._body(request), ChatRequest)
        self._service.require_model(body.model)
        limit = body.max_completion_tokens or body.max_tokens
        params = body.params(self._service.own, limit)
        prompt = self._service.render([message.as_template() for message in body.messages])
        adjustment = body.adjustment(self._service.model.session.vocab_size)
        answer = self._service.ask(prompt, params, adjustment, client)
        return await self._reply("chat", request, body, answer)

    async def completions(self, request: Request) -> Response:
        """Continue a text."""
        client = self._client(request)
        body = read_body(await self._body(request), CompletionRequest)
        self._service.require_model(body.model)
        params = body.params(self._service.own, body.max_tokens or 16)  # OpenAI's default
        adjustment = body.adjustment(self._service.model.session.vocab_size)
        prompt = self._service.continue_text(body.prompt)
        answer = self._service.ask(prompt, params, adjustment, client)
        return await self._reply("completion", request, body, answer)

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
            prompt = service.render([message.as_template() for message in body.messages])
        limit = service.model.session.max_context
        tokens = list(prompt.tokens)
        return JSONResponse({"count": len(tokens), "max_model_len": limit, "tokens": tokens})

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        self._client(request)
        body = read_body(await self._body(request), DetokenizeRequest)
        tokenizer = self._service.model.tokenizer
        unknown = [token for token in body.tokens if token >= tokenizer.vocab_size]
        if unknown:
            raise ApiError(400, f"{unknown[0]} is no token of the model", param="tokens")
        return JSONResponse({"prompt": tokenizer.decode(body.tokens)})

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
        self, kind: Kind, request: Request, body: ChatRequest | CompletionRequest, answer: Answer
    ) -> Response:
        reply = Reply(kind, self._service.name, answer)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await self._stream(reply, answer, usage=usage)
        if not await self._consume(request, answer):
            return Response(status_code=CLIENT_LEFT)
        return JSONResponse(reply.whole())

    async def _consume(self, request: Request, answer: Answer) -> bool:
        """Wait for the whole answer; False if the client left before, which cancels it."""

        async def consume() -> None:
            async with contextlib.aclosing(self._pieces(answer)) as pieces:
                async for piece in pieces:
                    del piece

        consumer = asyncio.create_task(consume())
        watcher = asyncio.create_task(_left(request.receive))
        try:
            await asyncio.wait({consumer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if consumer.done():
                consumer.result()
                return True
            return False
        finally:
            for task in (consumer, watcher):
                task.cancel()
            await asyncio.gather(consumer, watcher, return_exceptions=True)

    async def _stream(self, reply: Reply, answer: Answer, *, usage: bool) -> Response:
        """Return a streaming response; what fails before the first token has its own status."""
        pieces = self._pieces(answer)
        try:
            head = await anext(pieces, None)
        except BaseException:
            await pieces.aclose()
            raise

        async def events() -> AsyncIterator[bytes]:
            async with contextlib.aclosing(pieces):
                yield reply.first()
                if head is not None:
                    yield reply.piece(head)
                try:
                    async for piece in pieces:
                        yield reply.piece(piece)
                except EdgekitError as error:
                    # The status is out already: the error is the stream's last event.
                    yield event(explain(error).body())
                    return
                yield reply.last(usage=usage)

        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

    async def _pieces(self, answer: Answer) -> AsyncGenerator[TextPiece, None]:
        """Yield an answer's pieces and count it."""
        try:
            async with contextlib.aclosing(answer.pieces(self._service.engine)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            if answer.request.queued_s is not None:
                self._service.metrics.ended(answer.request, time.monotonic())


async def _left(receive: Callable[[], Awaitable[object]]) -> None:
    """Return when the client has gone; its body has been read."""
    with contextlib.suppress(ClientDisconnect):
        while True:
            message = await receive()
            if isinstance(message, dict) and message.get("type") == "http.disconnect":
                return
