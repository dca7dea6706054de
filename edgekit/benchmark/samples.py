"""What one request took, and how the events of its answer say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from edgekit.benchmark.refusals import said_in
from edgekit.errors import EndpointError

DONE = "[DONE]"
_TEXTS = ("content", "reasoning_content", "reasoning")
"""Where a chat's delta has its text; reasoning counts as any other."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answered request.

    Attributes:
        begun_s: When it was sent, on the clock of ``time.perf_counter``.
        ttft_s: Time to the first token: until the first text came.
        e2e_s: End to end: until the chunk that says why the answer ended.
        prompt_tokens: As the server counts them.
        output_tokens: As the server counts them, the token that ends an answer included.
        cached_tokens: Of the prompt, found in the server's prefix cache; None if it does not say.
        finish_reason: ``stop``, ``length``.
    """

    begun_s: float
    ttft_s: float
    e2e_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None
    finish_reason: str

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None of an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens by the whole request's time."""
        return self.output_tokens / self.e2e_s

    @property
    def ended_s(self) -> float:
        """When the answer was whole."""
        return self.begun_s + self.e2e_s

    def to_dict(self) -> dict[str, Any]:
        """Return it for another process."""
        return asdict(self)


class Reading:
    """Reads the events of one streamed answer.

    Args:
        url: What was asked, for messages.
        begun_s: When the request was sent.
        on_first: Called when the first text comes.
    """

    def __init__(self, url: str, begun_s: float, on_first: Callable[[], None] | None) -> None:
        self._url, self._begun_s, self._on_first = url, begun_s, on_first
        self._first_s: float | None = None
        self._last_s = begun_s
        self._reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._done = False

    def take(self, data: str, now_s: float) -> None:
        """Read an event that came at a time.

        Raises:
            EndpointError: It tells of an error, or is none of OpenAI's events.
        """
        if data == DONE:
            self._done = True
            return
        chunk = self._parsed(data)
        choices = chunk.get("choices") or []
        for choice in choices:
            self._last_s = now_s
            if _text(choice) and self._first_s is None:
                self._came_first(now_s)
            self._reason = choice.get("finish_reason") or self._reason
        self._usage = chunk.get("usage") or self._usage

    def sample(self) -> Sample:
        """Return what the whole answer took.

        Raises:
            EndpointError: The answer is not whole, or its tokens were not counted.
        """
        if self._reason is None or not self._done:
            raise EndpointError(
                f"{self._url} ended its stream before the answer's end",
                "Look into the server's log",
            )
        counts = [self._usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if not all(isinstance(count, int) for count in counts) or not counts[1]:
            raise EndpointError(
                f"{self._url} does not say how many tokens its answer has",
                "Bench a server that has stream_options.include_usage",
            )
        if self._first_s is None:  # it ended with its first token, which has no text
            self._came_first(self._last_s)
        details = self._usage.get("prompt_tokens_details") or {}
        return Sample(
            begun_s=self._begun_s,
            ttft_s=(self._first_s or self._last_s) - self._begun_s,
            e2e_s=self._last_s - self._begun_s,
            prompt_tokens=int(counts[0] or 0),
            output_tokens=int(counts[1]),
            cached_tokens=details.get("cached_tokens"),
            finish_reason=self._reason,
        )

    def _came_first(self, now_s: float) -> None:
        self._first_s = now_s
        if self._on_first is not None:
            self._on_first()

    def _parsed(self, data: str) -> dict[str, Any]:
        try:
            chunk: Any = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices", []), list):
            raise EndpointError(
                f"{self._url} sent an event that is none of OpenAI's: {data[:80]!r}",
                "Check that the address is that of an OpenAI-compatible server",
            )
        if "error" in chunk:
            said, _ = said_in(data.encode())
            raise EndpointError(
                f"{self._url} failed while it answered: {said}", "Look into the server's log"
            )
        return chunk


def _text(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice has any text."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(name) for name in _TEXTS)
