"""Cache slots: what each holds, who has it, and which suits a prompt best."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from device.runtime.request import Request

WORTH_TOKENS = 16
"""A shorter beginning in common (a template's, a system message of some words) is run again."""
LONG_TEXT_TOKENS = 256
"""What a slot holds is worth keeping from here on."""
_BLOCK = 64


@dataclass(slots=True)
class Slot:
    """One slot of the engine's caches.

    Attributes:
        index: The engine's number of it.
        tokens: What the cache holds, in order; kept when a request ends, for the next like it.
        request: Who has it; None while it is free.
        prefilled: Tokens of the request's prompt that are in the cache.
        used: When it was last given away; larger is later.
        due: How many tokens of prompts may have run, of all, when its prompt should have.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    request: Request | None = None
    prefilled: int = 0
    used: int = 0
    due: int = 0

    @property
    def unfilled(self) -> int:
        """Tokens of its request's prompt that have yet to run."""
        return 0 if self.request is None else len(self.request.prompt) - self.prefilled

    @property
    def is_prefilling(self) -> bool:
        """Whether its request's prompt is not yet in the cache."""
        return self.unfilled > 0

    @property
    def is_decoding(self) -> bool:
        """Whether its request has a token that the engine has not seen."""
        return self.request is not None and not self.is_prefilling


class Slots:
    """All slots of an engine."""

    def __init__(self, count: int) -> None:
        self.all = [Slot(index) for index in range(count)]
        self._turns = itertools.count(1)

    def take(self, request: Request) -> Slot | None:
        """Give a request the free slot that holds most of its prompt; None if none is free.

        Where none holds enough to matter it is one that holds no long text, if there is one; the
        one that makes the smallest block with those in use, because an engine runs all slots
        of a block (``covering_block``); the one unused for longest.
        """
        free = [slot for slot in self.all if slot.request is None]
        if not free:
            return None
        busy = [slot.index for slot in self.all if slot.request is not None]
        best = max(free, key=lambda slot: _merit(slot, busy, request.prompt))
        # The last token of a prompt always runs: its logits are what generation begins with.
        reused = min(common_prefix(best.tokens, request.prompt), len(request.prompt) - 1)
        del best.tokens[reused:]
        best.request, best.prefilled, best.used = request, reused, next(self._turns)
        request.reused_tokens = reused
        return best

    def lender(self, slot: Slot) -> tuple[Slot, int] | None:
        """Return the slot that holds most of the prompt that a slot is running, and how much.

        None if no slot holds enough more than is there already. Prompts that begin alike and run at
        the same time so share their beginning, too: each runs the chunk that the other lacks.
        """
        if slot.request is None:
            return None
        prompt = slot.request.prompt
        others = [other for other in self.all if other is not slot]
        held = [common_prefix(other.tokens, prompt) for other in others]
        most = min(max(held, default=0), len(prompt) - 1)
        if most < slot.prefilled + WORTH_TOKENS:
            return None
        return others[held.index(max(held))], most

    def scattered(self) -> list[tuple[Slot, Slot]]:
        """Return who generates where, and the free slot to move to, to make their block smaller.

        Those who end leave holes, and an engine runs all slots of a block: two who generate in
        slots 0 and 9 cost as much as sixteen.
        """
        busy = [slot.index for slot in self.all if slot.is_decoding]
        free = sorted(
            (slot for slot in self.all if slot.request is None),
            key=lambda slot: (len(slot.tokens) >= LONG_TEXT_TOKENS, slot.used),
        )
        pairs = moves(busy, [slot.index for slot in free])
        return [(self.all[source], self.all[target]) for source, target in pairs]

    def of(self, request: Request) -> Slot | None:
        """Return the slot that a request has."""
        return next((slot for slot in self.all if slot.request is request), None)


def _merit(
    slot: Slot, busy: Sequence[int], prompt: Sequence[int]
) -> tuple[int, bool, int, int, int]:
    """Return how well a slot suits a prompt; more is better."""
    held = common_prefix(slot.tokens, prompt)
    is_short = len(slot.tokens) < LONG_TEXT_TOKENS
    block = covering_block([*busy, slot.index])
    # Where a block begins there is room beside it for those who come next.
    room = (slot.index & -slot.index or 1 << 16) if is_short else 0
    return held if held >= WORTH_TOKENS else 0, is_short, -block, room, -slot.used


def covering_block(slots: Sequence[int]) -> int:
    """Return the size of the smallest block, a power of two at a multiple of it, with all slots."""
    size = 1
    while min(slots) // size != max(slots) // size:
        size *= 2
    return size


def moves(busy: Sequence[int], free: Sequence[int]) -> list[tuple[int, int]]:
    """Return the fewest moves that bring busy slots into the smallest block that can have them.

    Args:
        busy: Slots to be run.
        free: Slots to move to, the best first.

    Returns:
        Pairs of a busy slot and a free one; none if the block is as small as it can be.
    """
    if not busy:
        return []
    size = 1 << (len(busy) - 1).bit_length()
    while size < covering_block(busy):
        held = Counter(index // size for index in busy)
        room = Counter(index // size for index in free)
        for block in sorted({*held, *room}, key=lambda block: -held[block]):
            if held[block] + room[block] >= len(busy):
                targets = (index for index in free if index // size == block)
                return list(zip((i for i in busy if i // size != block), targets, strict=False))
        size *= 2
    return []


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    size, start = min(len(a), len(b)), 0
    # Block by block in C, then token by token in the one that differs.
    while start < size and list(a[start : start + _BLOCK]) == list(b[start : start + _BLOCK]):
        start += _BLOCK
    for index in range(start, min(start + _BLOCK, size)):
        if a[index] != b[index]:
            return index
    return size
