"""An engine that is strict about what it is fed, and can be predicted; requests for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from device.runtime.request import Request
from device.runtime.scheduler import Scheduler
from edgekit.engine.sampler import SamplingParams
from edgekit.errors import EngineError

VOCABULARY, CONTEXT, END = 97, 64, 0


def next_token(tokens: Sequence[int]) -> int:
    """Return the token that the engine's model says after these: a function of all of them."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % 10_007
    return state % VOCABULARY


def expected(prompt: Sequence[int], limit: int) -> list[int]:
    """Return what a request alone would be answered."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < limit:
        token = next_token(tokens)
        if token == END:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


class Engine:
    """A session whose caches hold tokens; feeding it with a gap or past the end is an error."""

    max_context, vocab_size = CONTEXT, VOCABULARY

    def __init__(self, slots: int = 4) -> None:
        self.max_sequences = slots
        self.held: list[list[int]] = [[] for _ in range(slots)]
        self.prefilled = 0
        self.batches: list[int] = []
        self.ran: list[list[int]] = []
        self.poison: set[int] = set()
        self.broken: Exception | None = None

    def _feed(self, slot: int, tokens: Sequence[int], start: int) -> npt.NDArray[np.float32]:
        assert 0 <= start <= len(self.held[slot])
        assert start + len(tokens) <= CONTEXT
        del self.held[slot][start:]
        self.held[slot].extend(tokens)
        row = np.zeros(VOCABULARY, np.float32)
        row[next_token(self.held[slot])] = 9
        return row

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        assert not all_logits
        assert tokens
        self.prefilled += len(tokens)
        return self._feed(slot, tokens, start)

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        assert len(set(slots)) == len(slots)
        if self.broken is not None:
            raise self.broken
        for slot, position in zip(slots, positions, strict=True):
            if position > len(self.held[slot]) == 0:
                raise EngineError(f"slot {slot} holds nothing: its logits were not finite")
        self.batches.append(len(slots))
        self.ran.append(list(slots))
        rows = [
            self._feed(slot, [token], position)
            for slot, token, position in zip(slots, tokens, positions, strict=True)
        ]
        bad = [slot for slot in slots if self.poison & set(self.held[slot])]
        if bad:
            for slot in bad:
                self.held[slot].clear()
            raise EngineError(f"logits of slot {bad[0]} are not finite")
        return np.stack(rows)

    def release(self, slot: int) -> None:
        self.held[slot].clear()

    def close(self) -> None:
        raise AssertionError


class CopyingEngine(Engine):
    """One that can give a slot what another holds, unless it says that this is not worth it."""

    def __init__(self, slots: int = 4, *, worth: bool = True) -> None:
        super().__init__(slots)
        self.worth, self.copied = worth, 0

    def copy_prefix(self, source: int, target: int, count: int) -> bool:
        assert source != target
        assert 0 < count <= len(self.held[source])
        if self.worth:
            self.held[target] = self.held[source][:count]
            self.copied += count
        return self.worth


def lasting(steps: int) -> list[int]:
    """Return a prompt whose answer is longer than this."""
    return next([n, n + 1] for n in range(1, 90) if len(expected([n, n + 1], steps)) == steps)


def keep_on(request: Request, token: int) -> bool:
    """Want everything."""
    return bool(request.generated[-1] == token)


def ask(prompt: Sequence[int], limit: int = 8, **more: object) -> Request:
    """Return a request that wants everything."""
    values: dict[str, object] = {
        "prompt": tuple(prompt),
        "params": SamplingParams(max_tokens=limit),
        "ends": frozenset({END}),
        "on_token": keep_on,
        "on_finish": [].append,
        **more,
    }
    return Request(**values)  # type: ignore[arg-type]  # of the right types, by name


def note(order: list[str], name: str, request: Request) -> None:
    """Write down who ended."""
    assert request.reason is not None
    order.append(name)


def run(scheduler: Scheduler, steps: int = 10_000) -> None:
    """Step until there is nothing left to do."""
    for _ in range(steps):
        if not scheduler.step():
            return
    raise AssertionError
