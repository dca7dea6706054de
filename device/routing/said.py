"""What a request says of where and when it is to be answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from device.api.errors import ApiError

if TYPE_CHECKING:  # NumPy comes with them
    from device.api.schema import ChatRequest, CompletionRequest
    from device.runtime.request import Request as EngineRequest

PRIVACY_HEADER: Final = "x-edgekit-privacy"
DEADLINE_HEADER: Final = "x-edgekit-deadline-s"
ANYWHERE: Final = "any"
"""The one word that pins nothing: a misspelt ``local`` must not let a request leave."""


def is_pinned(request: Request, body: ChatRequest | CompletionRequest) -> bool:
    """Return whether a request asks not to leave the device, in its head or its metadata."""
    said = list(request.headers.getlist(PRIVACY_HEADER))
    metadata = getattr(body, "metadata", None) or {}
    if "privacy" in metadata:
        said.append(metadata["privacy"])
    return any(word.strip().lower() != ANYWHERE for word in said)


def names_tokens(body: ChatRequest | CompletionRequest) -> bool:
    """Return whether a request has ids of tokens, which are others in another model."""
    prompt = getattr(body, "prompt", "")
    return bool(body.logit_bias) or not _is_text(prompt)


def deadline_of(request: Request, engine: Sequence[EngineRequest], now_s: float) -> float:
    """Return a request's deadline, which its head may bring forward, for the engine as well.

    Args:
        request: It.
        engine: What the engine would get of it.
        now_s: Of the scheduler's clock, and so what is returned.

    Raises:
        ApiError: The header is no number above 0.
    """
    said = request.headers.get(DEADLINE_HEADER)
    if said is not None:
        within_s = _seconds(said)
        for one in engine:
            theirs = math.inf if one.deadline_s is None else one.deadline_s
            one.deadline_s = min(theirs, now_s + within_s)
    return min(math.inf if one.deadline_s is None else one.deadline_s for one in engine)


def _seconds(said: str) -> float:
    try:
        seconds = float(said)
    except ValueError:
        seconds = math.nan
    if not (0 < seconds < math.inf):
        raise ApiError(400, f"{DEADLINE_HEADER}: {said!r} is no number of seconds above 0")
    return seconds


def _is_text(prompt: object) -> bool:
    """Return whether a prompt is a text or some texts."""
    if isinstance(prompt, list | tuple):
        return all(isinstance(one, str) for one in prompt)
    return isinstance(prompt, str)
