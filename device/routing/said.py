"""What a request says of where it is to be answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.requests import Request

if TYPE_CHECKING:  # NumPy comes with them
    from device.api.schema import ChatRequest, CompletionRequest

PRIVACY_HEADER: Final = "x-edgekit-privacy"
ANYWHERE: Final = "any"
"""The one word that pins nothing: a misspelt ``local`` must not let a request leave."""


def is_pinned(request: Request, body: ChatRequest | CompletionRequest) -> bool:
    """Return whether a request asks not to leave the device, in its head or its metadata."""
    said = list(request.headers.getlist(PRIVACY_HEADER))
    metadata = getattr(body, "metadata", None) or {}
    said += [value for name, value in metadata.items() if name.strip().lower() == "privacy"]
    return any(word.strip().lower() != ANYWHERE for word in said)


def names_tokens(body: ChatRequest | CompletionRequest) -> bool:
    """Return whether a request has ids of tokens, which are others in another model."""
    prompt = getattr(body, "prompt", "")
    return bool(body.logit_bias) or not _is_text(prompt)


def _is_text(prompt: object) -> bool:
    """Return whether a prompt is a text or some texts."""
    if isinstance(prompt, list | tuple):
        return all(isinstance(one, str) for one in prompt)
    return isinstance(prompt, str)
