"""Continuous batching: chunks of prompts take turns with one token of all that generate.

A step is one run of the engine, so that who comes while a prompt runs is heard of before the next
run: its prompt, if it is short, goes before the next tokens, too. No threads and no text here: the
loop (``device.runtime.loop``) owns the thread, what turns tokens into text hears of them by
``Request.on_token``. A request that ends frees its slot at once; what the slot holds stays, so that
the next prompt with the same beginning need not run it again.

Tokens depend on nothing but the request, up to the engine's rounding: the draws are a function of
seed and step (``edgekit.engine.sampler``), but an engine may round a batch of another size, or a
prompt of which it holds the beginning, otherwise. Equal texts are promised within one batch size
and as much of the prompt reused.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from device.limits import QUEUE_LIMIT
from device.runtime.faults import QueueFullError
from device.runtime.gaps import Gaps
from device.runtime.queue import FairQueue
from device.runtime.request import FinishReason, Request
from device.runtime.slots import Slot, Slots
from edgekit.engine.candidates import Row
from edgekit.engine.generate import token_limit
from edgekit.engine.session import CopiesPrefixes, InferenceSession, decode_rows
from edgekit.errors import EdgekitError, EngineError

CHUNK_TOKENS: Final = 256
"""Tokens of prompts that run between two tokens of those who generate: bounds their wait."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a scheduler is.

    Attributes:
        waiting: Requests without a slot.
        running: Requests with one.
        slots: Slots.
        queue_limit: Requests that may wait once no slot is free.
    """

    waiting: int
    running: int
    slots: int
    queue_limit: int


class Scheduler:
    """Runs requests on one engine. Not thread-safe: one thread calls it.

    Args:
        session: The engine; all its slots are used.
        chunk_tokens: See ``CHUNK_TOKENS``.
        queue_limit: Requests that may wait for a slot.
        clock: Seconds from any start, never going back; deadlines are of it.
        gaps: Told the seconds between two tokens of a request.

    Attributes:
        steps: Engine steps that decoded, for the mean batch.
        decoded_tokens: Tokens that those made.
    """

    def __init__(
        self,
        session: InferenceSession,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        queue_limit: int = QUEUE_LIMIT,
        clock: Callable[[], float] = time.monotonic,
        gaps: Gaps | None = None,
    ) -> None:
        self._session = session
        self._chunk = chunk_tokens
        self._clock = clock
        self._gaps = Gaps() if gaps is None else gaps
        self._queue = FairQueue()
        self._queue_limit = queue_limit
        self._slots = Slots(session.max_sequences)
        self._limits: dict[Request, int] = {}
        self._prefilled = 0
        self._left = chunk_tokens
        self.steps = 0
        self.decoded_tokens = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that have one."""
        return sum(slot.request is not None for slot in self._slots.all)

    @property
    def load(self) -> Load:
        """How busy it is; any thread may ask, and gets what was true a step ago."""
        return Load(self.waiting, self.running, len(self._slots.all), self._queue_limit)

    @property
    def cache_used(self) -> float:
        """Share of the caches' places that running requests hold, 0 to 1."""
        slots = self._slots.all
        held = sum(len(slot.tokens) for slot in slots if slot.request is not None)
        return held / (len(slots) * self._session.max_context)

    def submit(self, request: Request) -> None:
        """Take a request; it is told of its tokens and its end by its sinks.

        Where too many wait it takes the place of the last of a client that has more of them.

        Raises:
            QueueFullError: Too many wait; the request was not taken.
            ContextOverflowError: The prompt does not fit the context.
            EngineError: The prompt is empty.
        """
        limit = token_limit(self._session, len(request.prompt), request.params)
        free = len(self._slots.all) - self.running
        if self.waiting >= self._queue_limit + free:
            full = QueueFullError(
                f"{self.waiting} requests wait already", "Ask again when some have been answered"
            )
            surplus = self._queue.crowding(request.client)
            if surplus is None:
                raise full
            self._end(surplus, "failed", full)
        self._limits[request] = limit
        request.queued_s = self._clock()
        self._queue.put(request)

    def cancel(self, request: Request) -> None:
        """End a request, waiting or running; no other notices."""
        self._end(request, "cancelled")

    def step(self) -> bool:
        """Do the next piece of work; returns whether there is more."""
        now_s = self._clock()
        for request in self._queue.expired(now_s):
            self._end(request, "expired")
        for slot in self._slots.all:
            late = slot.request
            if late is not None and late.deadline_s is not None and late.deadline_s <= now_s:
                self._end(late, "expired")
        self._admit(now_s)
        if not any(slot.is_decoding for slot in self._slots.all):
            self._left = self._chunk  # nobody waits for their next token
        due = self._due()
        if due is None:
            self._left = self._chunk
            self._decode()
        else:
            self._left -= self._prefill(due)
        return self.running > 0 or self.waiting > 0

    def _admit(self, now_s: float) -> None:
        """Give free slots to those who wait."""
        while self.running < len(self._slots.all):
            request = self._queue.take()
            if request is None:
                return
            slot = self._slots.take(request)
            if slot is None:
                raise AssertionError
            slot.due = self._prefilled + slot.unfilled
            request.started_s = now_s

    def _due(self) -> Slot | None:
        """Return the prompt of which a chunk may run before the next tokens of who generates.

        The first does as soon as those have had theirs, others as far as they still fit into the
        tokens of a chunk. A prompt is due once as many tokens of prompts have run as it has itself:
        those of one length go in their order, a short one passes a long one, and none is passed for
        ever.
        """
        fresh = self._left == self._chunk
        slots = [
            slot
            for slot in self._slots.all
            if slot.is_prefilling and (fresh or slot.unfilled <= self._left)
        ]
        return min(slots, key=lambda slot: (slot.due, slot.used), default=None)

    def _prefill(self, slot: Slot) -> int:
        """Run a chunk of a slot's prompt, and sample after the last; returns its tokens."""
        request = slot.request
        if request is None:
            raise AssertionError
        try:
            self._borrow(slot)
            start = slot.prefilled
            chunk = request.prompt[start : start + self._chunk]
            logits = self._session.prefill(slot.index, chunk, start)
        except EdgekitError as error:
            self._fail(slot, error)
            return 0
        slot.tokens.extend(chunk)
        slot.prefilled += len(chunk)
        self._prefilled += len(chunk)
        if slot.is_decoding:
            self._take(slot, logits, self._clock())
        return len(chunk)

    def _borrow(self, slot: Slot) -> None:
        """Take over what another slot holds of a slot's prompt, where the engine can copy it."""
        if slot.request is None or not isinstance(self._session, CopiesPrefixes):
            return
        found = self._slots.lender(slot)
        if found is None:
            return
        lender, count = found
        if self._session.copy_prefix(lender.index, slot.index, count):
            slot.request.reused_tokens += count - slot.prefilled
            slot.tokens[:] = slot.request.prompt[:count]
            slot.prefilled = count

    def _gather(self) -> None:
        """Move those who generate together, where the engine can copy what their slots hold."""
        if not isinstance(self._session, CopiesPrefixes):
            return
        for source, target in self._slots.scattered():
            try:
                if not self._session.copy_prefix(source.index, target.index, len(source.tokens)):
                    return
            except EngineError as error:
                self._fail(source, error)
                continue
            target.tokens[:] = source.tokens
            target.request, source.request = source.request, None
            target.prefilled, source.prefilled = source.prefilled, 0
            target.used = source.used

    def _decode(self) -> None:
        """Run one token of every request that generates, and of those alone if one fails."""
        self._gather()
        slots = [slot for slot in self._slots.all if slot.is_decoding]
        while slots:
            try:
                rows = self._run(slots)
            except EngineError as error:
                # The engine says which by having nothing left in it; others can run again.
                slots = self._without_broken(slots, error)
                continue
            self.steps += 1
            self.decoded_tokens += len(slots)
            now_s = self._clock()
            for slot, row in zip(slots, rows, strict=True):
                if slot.request is not None:
                    slot.tokens.append(slot.request.generated[-1])
                    self._take(slot, row, now_s)
            return

    def _run(self, slots: Sequence[Slot]) -> Sequence[Row]:
        requests = [slot.request for slot in slots if slot.request is not None]
        return decode_rows(
            self._session,
            [slot.index for slot in slots],
            [request.generated[-1] for request in requests],
            [len(slot.tokens) for slot in slots],
            [request.selects_at for request in requests],
        )

    def _without_broken(self, slots: Sequence[Slot], error: EngineError) -> list[Slot]:
        """Fail the requests that a step cannot be made with; returns the slots of the others.

        A batch of one names its culprit. Of a larger one each is tried alone: what the protocol
        promises is that the others still hold their tokens.
        """
        if len(slots) == 1:
            self._fail(slots[0], error)
            return []
        whole = []
        for slot in slots:
            try:
                (row,) = self._run([slot])
            except EngineError as own:
                self._fail(slot, own)
                continue
            del row  # the step is made again, in a batch: positions may be fed twice
            whole.append(slot)
        return whole if len(whole) < len(slots) else self._fail_all(slots, error)

    def _fail_all(self, slots: Sequence[Slot], error: EngineError) -> list[Slot]:
        """Fail a batch that no single request is to blame for."""
        for slot in slots:
            self._fail(slot, error)
        return []

    def _take(self, slot: Slot, row: Row, now_s: float) -> None:
        """Sample a request's next token and pass it on, or end the request.

        Args:
            slot: Whose request.
            row: What the step made for it.
            now_s: When the step ended, one clock reading for the whole batch.
        """
        request = slot.request
        if request is None:
            raise AssertionError
        try:
            token = request.sample(row)
        except EngineError as error:
            self._fail(slot, error)
            return
        if request.first_token_s is None:
            request.first_token_s = self._clock()
        if token in request.ends:
            self._end(request, "stop")
            return
        if request.last_token_s is not None:
            self._gaps.observe(now_s - request.last_token_s)
        request.last_token_s = now_s
        request.generated.append(token)
        if not request.on_token(request, token):
            self._end(request, "stop")
        elif len(request.generated) >= self._limits[request]:
            self._end(request, "length")

    def _fail(self, slot: Slot, error: EdgekitError) -> None:
        """End a slot's request with an error, and trust nothing that the slot holds."""
        slot.tokens.clear()
        if slot.request is not None:
            self._end(slot.request, "failed", error)

    def _end(
        self, request: Request, reason: FinishReason, error: EdgekitError | None = None
    ) -> None:
        """Free what a request has, and tell it."""
        self._queue.drop(request)
        self._limits.pop(request, None)
        slot = self._slots.of(request)
        if slot is not None:
            slot.request, slot.prefilled = None, 0
        request.finish(reason, error)
