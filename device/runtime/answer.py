"""An answer on its way: tokens of the engine's thread become text for an asyncio task.

The engine's thread decodes, looks for stop strings and tells reasoning from answer, for only it can
end the request on the very token; what it found crosses to the event loop piece by piece.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from device.runtime.adjust import Adjustment
from device.runtime.loop import EngineLoop
from device.runtime.request import Request
from edgekit.engine.generate import FinishReason
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import EdgekitError, EngineError
from edgekit.text.reasoning import ReasoningSplitter, TextPiece, prompt_opens_reasoning
from edgekit.text.stop import StopMatcher
from edgekit.text.tokenizer import Tokenizer


class DeadlinePassedError(EngineError):
    """The request was not answered in its time."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked.

    Attributes:
        text: Rendered, special tokens written out.
        tokens: Its ids.
    """

    text: str
    tokens: tuple[int, ...]


class Answer:
    """One request and the text that comes of it; made and read in one event loop.

    Args:
        prompt: What is asked.
        params: How to sample and when to stop.
        tokenizer: The model's.
        ends: Tokens that end a generation.
        client: Whose it is.
        deadline_s: Of the scheduler's clock.
        adjustment: What the request changes of its logits.

    Attributes:
        reasoning: Text of the reasoning so far.
        text: Text of the answer so far.
        reasoning_tokens: Tokens of the reasoning.
        request: What the engine has of it: token counts and times.
    """

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        *,
        client: str = "",
        deadline_s: float | None = None,
        adjustment: Adjustment = Adjustment(),  # noqa: B008 - frozen
    ) -> None:
        self.reasoning = ""
        self.text = ""
        self.reasoning_tokens = 0
        self._decoder = tokenizer.stream()
        self._stop = StopMatcher(params.stop)
        self._splitter = ReasoningSplitter(in_reasoning=prompt_opens_reasoning(prompt.text))
        self._pieces: asyncio.Queue[list[TextPiece] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.request = Request(
            prompt.tokens,
            params,
            ends,
            self._on_token,
            self._on_finish,
            client,
            deadline_s,
            adjustment,
        )

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended, in OpenAI's words; a cut is ``length``."""
        return "length" if self.request.reason == "length" else "stop"

    async def pieces(self, engine: EngineLoop) -> AsyncGenerator[TextPiece, None]:
        """Submit the request and yield its text as it comes; leaving early cancels it.

        Raises:
            QueueFullError: Too many wait.
            EngineStoppedError: The engine is being stopped.
            DeadlinePassedError: It was not answered in time.
            EngineError: The prompt does not fit, or the engine failed.
        """
        try:
            await asyncio.wrap_future(engine.submit(self.request))
            while (found := await self._pieces.get()) is not None:
                for piece in found:
                    if piece.is_reasoning:
                        self.reasoning += piece.text
                    else:
                        self.text += piece.text
                    yield piece
        finally:
            if self.request.reason is None:
                engine.cancel(self.request)
        self._require_success()

    def _require_success(self) -> None:
        error: EdgekitError | None = self.request.error
        if error is not None:
            raise error
        if self.request.reason == "expired":
            raise DeadlinePassedError("the request was not answered in its time")

    def _on_token(self, request: Request, token: int) -> bool:
        del request
        self.reasoning_tokens += self._splitter.in_reasoning
        self._say(self._splitter.feed(self._stop.feed(self._decoder.feed(token))))
        return not self._stop.stopped

    def _on_finish(self, request: Request) -> None:
        if request.reason in {"stop", "length"}:
            if not self._stop.stopped:
                left = self._stop.feed(self._decoder.flush()) + self._stop.flush()
                self._say(self._splitter.feed(left))
            self._say(self._splitter.finish())
        self._cross(None)

    def _say(self, pieces: list[TextPiece]) -> None:
        if pieces:
            self._cross(pieces)

    def _cross(self, found: list[TextPiece] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, found)
