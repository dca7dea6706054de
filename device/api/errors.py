"""Errors in OpenAI's shape, and which status each of ours has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from device.api.record import current
from device.api.watch import CLIENT_LEFT, ClientLeftError
from device.runtime.faults import (
    DeadlinePassedError,
    EngineStoppedError,
    GrammarError,
    QueueFullError,
)
from edgekit.errors import ContextOverflowError, EdgekitError

RETRY_AFTER_S = 1
"""What a client is told to wait where the queue is full: about an answer's time is not known."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: What is wrong.
        param: The field that is.
        code: OpenAI's word for it.
        fault: Type of the error that it comes of, for the log; the code if none is given.
        retry_s: Seconds that a client is told to wait.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        fault: str = "",
        retry_s: int = RETRY_AFTER_S,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.fault, self.retry_s = fault or code or self.kind, retry_s

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` of the error."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        return kinds.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )

    def body(self) -> dict[str, object]:
        """Return the JSON body; the request's record keeps what it was."""
        record = current()
        if record is not None:
            record.fault = self.fault
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the response; where asking again may help it says when."""
        headers = {"retry-after": str(self.retry_s)} if self.status in {429, 503} else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def explain(error: EdgekitError, asked: str = "messages") -> ApiError:
    """Return what a client is told of an error of edgekit's.

    Args:
        error: Whose words are told.
        asked: The field that has what is asked.
    """
    said, fault = str(error), type(error).__name__
    if isinstance(error, ContextOverflowError):
        code = "context_length_exceeded"
        return ApiError(400, said, param=asked, code=code, fault=fault)
    if isinstance(error, QueueFullError):
        return ApiError(429, said, code="queue_full", fault=fault)
    if isinstance(error, EngineStoppedError):
        return ApiError(503, said, code="engine_stopped", fault=fault)
    if isinstance(error, DeadlinePassedError):
        return ApiError(504, said, code="deadline_exceeded", fault=fault)
    if isinstance(error, GrammarError):
        return ApiError(400, said, code="schema_not_followed", fault=fault)
    return ApiError(500, said, code="engine_error", fault=fault)


def handlers(
    refused: Callable[[int], None],
) -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """Return an application's handlers of errors.

    Args:
        refused: Told the status of each request that is answered with an error.
    """

    async def fail(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, ApiError) else None
        if isinstance(error, EdgekitError):
            asked = "prompt" if request.url.path == "/v1/completions" else "messages"
            known = explain(error, asked)
        if isinstance(error, HTTPException):
            known = ApiError(error.status_code, str(error.detail))
        if isinstance(error, RecursionError):  # nothing of ours recurses but over what was sent
            known = ApiError(400, "the request is nested too deeply", fault="RecursionError")
        if known is None:
            known = ApiError(500, "internal error", fault=type(error).__name__)
        refused(known.status)
        return known.response()

    async def gone(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=CLIENT_LEFT)

    failures = (ApiError, EdgekitError, HTTPException, RecursionError, Exception)
    return {**dict.fromkeys(failures, fail), ClientLeftError: gone}
