"""An answer on its way: tokens of the engine's thread become text for an asyncio task.

The engine's thread decodes, looks for stop strings and tells reasoning from answer, for only it can
end the request on the very token; what it found crosses to the event loop piece by piece.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from device.runtime.adjust import Adjustment
from device.runtime.faults import DeadlinePassedError, EngineStoppedError
from device.runtime.logprobs import TokenLogprob
from device.runtime.loop import EngineLoop
from device.runtime.request import Request
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import EdgekitError
from edgekit.text.reasoning import ReasoningSplitter, TextPiece, prompt_opens_reasoning
from edgekit.text.stop import StopMatcher
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import ToolCall, ToolCallSplitter, ToolForm

if TYPE_CHECKING:
    from device.runtime.constraint import Constraint

Piece: TypeAlias = TextPiece | ToolCall
"""What an answer is made of."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked.

    Attributes:
        text: Rendered, special tokens written out.
        tokens: Its ids.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is asked of an answer besides its sampling.

    Attributes:
        adjustment: What it changes of its logits.
        top_logprobs: How many likeliest tokens are told in each place; None: no log probabilities.
        constraint: The grammar that binds it, of its own.
        calls: How the calls of tools in it are written; None: there are none.
        min_tokens: Until it has so many no end token is chosen, and no stop string is looked for.
        ignores_end: Whether it goes on behind an end token, which is a token like others.
        is_plain: Whether its text is not told apart: a continuation, with its tags of reasoning.
    """

    adjustment: Adjustment = field(default_factory=Adjustment)
    top_logprobs: int | None = None
    constraint: Constraint | None = None
    calls: ToolForm | None = None
    min_tokens: int = 0
    ignores_end: bool = False
    is_plain: bool = False


class Answer:
    """One request and the text that comes of it; made and read in one event loop.

    Args:
        prompt: What is asked.
        params: How to sample and when to stop.
        tokenizer: The model's.
        ends: Tokens that end a generation.
        client: Whose it is.
        deadline_s: Of the scheduler's clock.
        wishes: What is asked besides.

    Attributes:
        reasoning: Text of the reasoning so far.
        text: Text of the answer so far.
        calls: Tools called so far.
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
        wishes: Wishes = Wishes(),
    ) -> None:
        self.reasoning = ""
        self.text = ""
        self.calls: list[ToolCall] = []
        self.reasoning_tokens = 0
        form = wishes.calls
        self._calls = None if form is None else ToolCallSplitter(form)
        # Where a vocabulary has them as special tokens, calls must not lose their marks.
        marked = form is not None and tokenizer.is_special(form.call_opens)
        self._decoder = tokenizer.stream(skip_special=not marked)
        self._logprobs_taken = 0
        self._stop = StopMatcher(params.stop)
        self._min_tokens = wishes.min_tokens
        opened = prompt_opens_reasoning(prompt.text)
        self._splitter = None if wishes.is_plain else ReasoningSplitter(in_reasoning=opened)
        self._opened = opened and not wishes.is_plain
        self._pieces: asyncio.Queue[list[TextPiece] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.request = Request(
            prompt.tokens,
            params,
            frozenset() if wishes.ignores_end else ends,
            self._on_token,
            self._on_finish,
            client,
            deadline_s,
            wishes.adjustment,
            wishes.constraint,
            wishes.top_logprobs,
            wishes.min_tokens,
        )

    @property
    def has_reasoned(self) -> bool:
        """Whether its text stands behind reasoning, were it empty."""
        return self._opened or bool(self.reasoning)

    @property
    def finish_reason(self) -> str:
        """How it ended, in OpenAI's words; a cut is ``length``."""
        if self.request.reason == "length":
            return "length"
        return "tool_calls" if self.calls else "stop"

    def take_logprobs(self) -> list[TokenLogprob]:
        """Return the log probabilities of the tokens since the last call."""
        found = self.request.logprobs[self._logprobs_taken :]
        self._logprobs_taken += len(found)
        return found

    async def pieces(self, engine: EngineLoop) -> AsyncGenerator[Piece, None]:
        """Submit the request and yield what it becomes as it comes; leaving early cancels it.

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
                    for part in self._take(piece):
                        yield part
        finally:
            if self.request.reason is None:
                engine.cancel(self.request)
        self._require_success()
        for part in self._told(self._calls.finish() if self._calls else []):
            yield part

    def _take(self, piece: TextPiece) -> list[Piece]:
        if piece.is_reasoning:
            self.reasoning += piece.text
            return [piece]
        return self._told([piece.text] if self._calls is None else self._calls.feed(piece.text))

    def _told(self, parts: Sequence[str | ToolCall]) -> list[Piece]:
        """Take note of text and calls of the answer."""
        told: list[Piece] = []
        for part in parts:
            if isinstance(part, ToolCall):
                self.calls.append(part)
                told.append(part)
            else:
                self.text += part
                told.append(TextPiece(part, is_reasoning=False))
        return told

    def _require_success(self) -> None:
        error: EdgekitError | None = self.request.error
        if error is not None:
            raise error
        if self.request.reason == "expired":
            raise DeadlinePassedError("the request was not answered in its time")
        if self.request.reason == "cancelled":  # by the engine: who leaves does not come here
            raise EngineStoppedError("the engine was stopped before the end", "Ask again")

    def _on_token(self, request: Request, token: int) -> bool:
        if self._splitter is not None:
            self.reasoning_tokens += self._splitter.in_reasoning
        text = self._decoder.feed(token)
        if len(request.generated) > self._min_tokens:
            text = self._stop.feed(text)
        self._say(text)
        return not self._stop.stopped

    def _on_finish(self, request: Request) -> None:
        if request.reason in {"stop", "length"}:
            if not self._stop.stopped:
                self._say(self._stop.feed(self._decoder.flush()) + self._stop.flush())
            if self._splitter is not None and (left := self._splitter.finish()):
                self._cross(left)
        self._cross(None)

    def _say(self, text: str) -> None:
        """Pass on text, told apart if it is to be."""
        if self._splitter is not None:
            pieces = self._splitter.feed(text)
        else:
            pieces = [TextPiece(text, is_reasoning=False)] if text else []
        if pieces:
            self._cross(pieces)

    def _cross(self, found: list[TextPiece] | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody listens
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, found)
