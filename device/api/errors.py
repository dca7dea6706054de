"""Errors in OpenAI's shape, and which status each of ours has."""

from __future__ import annotations

from starlette.responses import JSONResponse

from device.runtime.answer import DeadlinePassedError
from device.runtime.loop import EngineStoppedError
from device.runtime.scheduler import QueueFullError
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
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` of the error."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        return kinds.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )

    def body(self) -> dict[str, object]:
        """Return the JSON body."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the response; where asking again may help it says when."""
        headers = {"retry-after": str(RETRY_AFTER_S)} if self.status in {429, 503} else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def explain(error: EdgekitError) -> ApiError:
    """Return what a client is told of an error of edgekit's."""
    said = f"{error.message}. {error.remedy}" if error.remedy else error.message
    if isinstance(error, ContextOverflowError):
        return ApiError(400, said, param="messages", code="context_length_exceeded")
    if isinstance(error, QueueFullError):
        return ApiError(429, said, code="queue_full")
    if isinstance(error, EngineStoppedError):
        return ApiError(503, said, code="engine_stopped")
    if isinstance(error, DeadlinePassedError):
        return ApiError(504, said, code="deadline_exceeded")
    return ApiError(500, said, code="engine_error")
