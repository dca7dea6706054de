"""Ranges of numbers behave as the sets they stand for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.seq_ranges import (
    Ranges,
    contains,
    count,
    difference,
    from_json,
    ranges_of,
    to_json,
    union,
)
from edgekit.errors import MessageError

SETS = st.sets(st.integers(1, 60))


def numbers(ranges: Ranges) -> set[int]:
    found = [n for first, last in ranges for n in range(first, last + 1)]
    assert len(found) == len(set(found)) == count(ranges)
    return set(found)


@given(SETS, SETS)
def test_ranges_are_sets(left: set[int], right: set[int]) -> None:
    """Union, difference and membership are those of sets, in the one shortest form."""
    a, b = ranges_of(left), ranges_of(right)
    assert union(a, b) == ranges_of(left | right)
    assert difference(a, b) == ranges_of(left - right)
    assert numbers(a) == left
    assert {n for n in range(62) if contains(a, n)} == left
    assert all(first > before + 1 for (_, before), (first, _) in itertools.pairwise(a))


@given(SETS)
def test_ranges_cross_the_air(numbers_: set[int]) -> None:
    """The message's form reads back."""
    ranges = ranges_of(numbers_)
    assert from_json(to_json(ranges), "x") == ranges


def test_touching_ranges_are_joined() -> None:
    """A sender that cuts where it likes means the same set."""
    assert from_json([[1, 2], [3, 3], [5, 9]], "x") == ((1, 3), (5, 9))


@pytest.mark.parametrize(
    "data", [None, {}, [[1]], [[1, 2, 3]], [[0, 1]], [[2, 1]], [[1, 3], [3, 4]], [[5, 6], [1, 2]],
             [["1", 2]], [[True, 2]], [[1.0, 2]], [[1, 2**54]], [[1, 1]] * 10_001],
)  # fmt: skip
def test_bad_ranges_are_refused(data: Any) -> None:
    """What is no ascending list of pairs is an error that names the place."""
    with pytest.raises(MessageError, match="ack"):
        from_json(data, "ack")
