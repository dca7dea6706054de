"""Sets of sequence numbers as ranges: what was sent, what is stored, what is double.

Replay goes newest first and acknowledgements may be lost, so neither side can keep a high-water
mark: both keep sets. A set is a tuple of pairs (first, last), both included, ascending, with at
least one number missing between two pairs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from edgekit.contracts.fields import show
from edgekit.errors import MessageError

Ranges = tuple[tuple[int, int], ...]
MAX_SEQ = 2**53
MAX_RANGES = 10_000
"""Most ranges that one message may name."""


def ranges_of(numbers: Iterable[int]) -> Ranges:
    """Return the set of some numbers, in any order, double or not."""
    return union((number, number) for number in numbers)


def union(*parts: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of pairs (first, last), which may overlap and come in any order."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(pair for part in parts for pair in part):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def difference(left: Ranges, right: Ranges) -> Ranges:
    """Return the numbers of ``left`` that are not in ``right``."""
    result = []
    cuts = iter(right)
    cut = next(cuts, None)
    for first, last in left:
        start = first
        while cut is not None and cut[0] <= last:
            if cut[0] > start:
                result.append((start, cut[0] - 1))
            start = max(start, cut[1] + 1)
            if cut[1] >= last:
                break
            cut = next(cuts, None)
        if start <= last:
            result.append((start, last))
    return tuple(result)


def meeting(ranges: Ranges, others: Ranges) -> Ranges:
    """Return those ranges of a set that share a number with another set."""
    result = []
    rest = iter(others)
    other = next(rest, None)
    for first, last in ranges:
        while other is not None and other[1] < first:
            other = next(rest, None)
        if other is None:
            break
        if other[0] <= last:
            result.append((first, last))
    return tuple(result)


def contains(ranges: Ranges, number: int) -> bool:
    """Whether a number is in a set."""
    index = bisect_right(ranges, (number, MAX_SEQ + 1)) - 1
    return index >= 0 and number <= ranges[index][1]


def count(ranges: Ranges) -> int:
    """Return how many numbers a set has."""
    return sum(last - first + 1 for first, last in ranges)


def to_json(ranges: Ranges) -> list[list[int]]:
    """Return the form that messages have: ``[[1, 60], [62, 62]]``."""
    return [[first, last] for first, last in ranges]


def from_json(data: Any, where: str) -> Ranges:
    """Read the form that messages have.

    Raises:
        MessageError: It is no ascending list of pairs from 1, without overlaps, or is too long.
    """
    if not isinstance(data, list) or len(data) > MAX_RANGES:
        raise MessageError(f"{where} is not a list of at most {MAX_RANGES} ranges")
    result: list[tuple[int, int]] = []
    previous = 0
    for pair in data:
        if not isinstance(pair, list) or [type(number) for number in pair] != [int, int]:
            raise MessageError(f"{where} has {show(pair)} for a pair [first, last]")
        first, last = pair
        if not previous < first <= last <= MAX_SEQ:
            raise MessageError(f"{where} is not ascending from 1 at {show(pair)}")
        result.append((first, last))
        previous = last
    return union(result)
