"""The protocol every inference engine stands behind (design: one graph, several engines).

A session owns key/value caches in slots. The caller feeds tokens at a position and gets
logits; sampling, templates and scheduling live above. Positions of a slot are filled without
gaps; feeding an earlier position again overwrites it and forgets what followed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgekit.engine.candidates import Row


class InferenceSession(Protocol):
    """One model loaded on one engine, with ``max_sequences`` cache slots."""

    @property
    def max_context(self) -> int:
        """Tokens a slot can hold."""

    @property
    def max_sequences(self) -> int:
        """Slots that can be decoded at once."""

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        """Run ``tokens`` at positions ``start`` onward in ``slot``.

        Long inputs are chunked inside. Returns logits float32 [V] of the last token, or
        [len(tokens), V] with ``all_logits``; the array is the caller's own.

        Raises:
            ContextOverflowError: ``start + len(tokens)`` exceeds ``max_context``.
            EngineError: There is no such slot, ``start`` is past what the slot holds, there
                are no tokens, or logits are not finite (the slot's cache has been zeroed).
        """

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Run one token in each of ``slots``; returns logits float32 [len(slots), V].

        The array is the caller's own; its rows follow ``slots``.

        Raises:
            ContextOverflowError: A position is outside its slot.
            EngineError: Slots repeat, a position is past what its slot holds, or logits are
                not finite (those slots' caches have been zeroed; the other slots hold their
                token and may be decoded again at the same position).
        """

    def release(self, slot: int) -> None:
        """Forget what ``slot`` holds, so that it costs no attention width; never required."""

    def close(self) -> None:
        """Free the engine and its caches."""


@runtime_checkable
class SelectsCandidates(Protocol):
    """A session that can leave the logits where they are and return what samplers need.

    An extension of its own, so that an ``InferenceSession`` need not be one.
    """

    def decode_candidates(
        self,
        slots: Sequence[int],
        tokens: Sequence[int],
        positions: Sequence[int],
        temperatures: Sequence[float],
    ) -> Sequence[Row]:
        """Run one token in each of ``slots``; returns a row of each, whole or candidates.

        ``temperatures`` are those the rows are sampled at, 0 where only the best token is wanted.
        A candidates' whole row is to be had until the session's next step.

        Raises:
            ContextOverflowError: As of ``decode``.
            EngineError: Likewise.
        """


@runtime_checkable
class CopiesPrefixes(Protocol):
    """A session that can give one slot what another holds; an extension of its own, too."""

    def copy_prefix(self, source: int, target: int, count: int) -> bool:
        """Make slot ``target`` hold the first ``count`` positions of slot ``source``.

        Returns:
            False where running the tokens again is cheaper; nothing has changed then.

        Raises:
            EngineError: There are no such slots, they are one, or ``source`` holds less.
        """


def decode_rows(
    session: InferenceSession,
    slots: Sequence[int],
    tokens: Sequence[int],
    positions: Sequence[int],
    temperatures: Sequence[float | None],
) -> Sequence[Row]:
    """Decode a token in each slot, and return as little of the logits as samplers need.

    Args:
        session: Any engine; one that cannot select returns whole rows.
        slots: As of ``InferenceSession.decode``, and so the next two.
        tokens: Tokens to feed.
        positions: Their positions.
        temperatures: Of each slot's sampler (``Sampler.selects_at``): 0 wants the best token only,
            None the whole row.

    Returns:
        One row a slot. Candidates fetch their row only before the session's next step.

    Raises:
        ContextOverflowError: As of ``InferenceSession.decode``.
        EngineError: Likewise.
    """
    wanted = [value for value in temperatures if value is not None]
    if len(wanted) == len(slots) and _selects(session):
        return session.decode_candidates(slots, tokens, positions, wanted)
    return list(session.decode(slots, tokens, positions))


def _selects(session: InferenceSession) -> TypeGuard[SelectsCandidates]:
    return _type_selects(type(session))


@functools.cache
def _type_selects(kind: type) -> bool:
    # Asked every step: looking a protocol's members up takes longer than the step's inputs.
    return issubclass(kind, SelectsCandidates)
