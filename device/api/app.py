"""The routes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from device.api.aside import aside
from device.api.deliver import stream, whole
from device.api.errors import ApiError, handlers
from device.api.replies import Kind, Reply
from device.api.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
    read_body,
    seeded,
)
from device.api.service import Service
from device.runtime.answer import Answer, Piece


def make_app(service: Service) -> Starlette:
    """Return the ASGI application that asks one model; ``device.agent.front`` stands before it."""
    routes = Routes(service)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completions, methods=["POST"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
        ],
        exception_handlers=handlers(service.metrics.refused),
    )


class Routes:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        client, service = self._client(request), self._service
        data = await self._body(request)
        body = read_body(data, ChatRequest)
        service.require_model(body.model)
        params = body.params(service.own, body.max_completion_tokens or body.max_tokens)
        told = () if body.tool_choice == "none" else body.tools or ()
        prompt = await aside(
            len(data), lambda: service.render(body.messages, told, body.chat_template_kwargs)
        )
        wishes = await service.wishes(body, prompt)
        answers = [
            service.ask(prompt, one, wishes(), client) for one in seeded(params, body.n or 1)
        ]
        return await self._reply("chat", request, body, answers)

    async def completions(self, request: Request) -> Response:
        """Continue a text, or some."""
        client, service = self._client(request), self._service
        data = await self._body(request)
        body = read_body(data, CompletionRequest)
        service.require_model(body.model)
        params = body.params(service.own, body.max_tokens or 16)  # OpenAI's default
        wishes = body.wishes(service.model.session.vocab_size)
        texts = body.prompts
        prompts = await aside(len(data), lambda: [service.continue_text(text) for text in texts])
        if not all(prompt.tokens for prompt in prompts):
            raise ApiError(400, "a prompt has no tokens: give at least one", param="prompt")
        answers = [
            service.ask(prompt, one, wishes, client)
            for prompt in prompts
            for one in seeded(params, body.n or 1)
        ]
        return await self._reply("completion", request, body, answers)

    async def tokenize(self, request: Request) -> Response:
        """Return the tokens of a text or a conversation."""
        self._client(request)
        data, service = await self._body(request), self._service
        body = read_body(data, TokenizeRequest)

        def answer() -> Response:
            if body.messages is None:
                prompt = service.continue_text(body.prompt or "")
            else:
                prompt = service.render(body.messages)
            limit = service.model.session.max_context
            tokens = list(prompt.tokens)
            return JSONResponse({"count": len(tokens), "max_model_len": limit, "tokens": tokens})

        return await aside(len(data), answer)

    async def detokenize(self, request: Request) -> Response:
        """Return the text of tokens."""
        self._client(request)
        data, service = await self._body(request), self._service
        body = read_body(data, DetokenizeRequest)
        service.require_tokens(body.tokens, "tokens")
        text = await aside(len(data), lambda: service.model.tokenizer.decode(body.tokens))
        return JSONResponse({"prompt": text})

    def _client(self, request: Request) -> str:
        host = "" if request.client is None else request.client.host
        return self._service.settings.client_of(request.headers.get("authorization"), host)

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
        options = body.stream_options or StreamOptions()
        reply = Reply(
            kind,
            service.name,
            service.model.tokenizer,
            answers,
            streams_usage=options.include_usage,
            counts_on=options.continuous_usage_stats,
        )
        pieces = [self._pieces(answer) for answer in answers]
        if body.stream:
            return await stream(request, reply, pieces)
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
