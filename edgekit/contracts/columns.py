"""Columns of numbers as JSON, so that a general compressor has little left to do.

Every column is written in the shortest of three forms:

| in | form | when |
|---|---|---|
| ``constants`` | the value | it is the same in every row |
| ``lists`` | the values | |
| ``deltas`` | ``[exponent, first, difference, ...]`` | what varies little |

A value of ``deltas`` is the running sum times 10**exponent, the exponent from -9 to 0: sensors have
few decimals, and the differences of slow ones are small integers. Missing values are null in all
three; a difference is to the last value that is not missing. Numbers read back equal, though 2.0
may come back as 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from edgekit.contracts.fields import show
from edgekit.contracts.series import MAX_SERIES, Number, is_value, split_name
from edgekit.errors import MessageError

Column = tuple[Number | None, ...]
MAX_ROWS = 10_000
MAX_CELLS = 500_000
"""Most rows times columns: a constant's few bytes claim any number of rows."""
_MAX_DECIMALS = 9
_MAX_SUM = 2**53
"""Doubles hold integers exactly up to here, which makes value and sum convert both ways."""


def encode_columns(columns: Mapping[str, Sequence[Number | None]]) -> dict[str, Any]:
    """Return columns of equal length, at least one row, in their shortest forms."""
    forms: dict[str, dict[str, Any]] = {"constants": {}, "deltas": {}, "lists": {}}
    for name, column in columns.items():
        if all(value == column[0] for value in column):
            forms["constants"][name] = column[0]
            continue
        deltas = _deltas(column)
        plain = list(column)
        if deltas is not None and _chars(deltas) < _chars(plain):
            forms["deltas"][name] = deltas
        else:
            forms["lists"][name] = plain
    return {form: held for form, held in forms.items() if held}


def decode_columns(data: Mapping[str, Any], rows: int, where: str) -> dict[str, Column]:
    """Return the columns of a message.

    Args:
        data: The message: what it has of ``constants``, ``deltas`` and ``lists``.
        rows: How many rows it has.
        where: What to call it in errors.

    Raises:
        MessageError: A form is broken, a name is double, or there are too many cells.
    """
    columns: dict[str, Column] = {}
    for form, read in (("constants", _constant), ("deltas", _sums), ("lists", _list)):
        held = data.get(form, {})
        if not isinstance(held, Mapping):
            raise MessageError(f"{where}: {form} is not an object")
        if len(columns) + len(held) > min(MAX_SERIES, MAX_CELLS // max(rows, 1)):
            raise MessageError(f"{where} has too many columns for its {rows} rows")
        for name, value in held.items():
            split_name(name)
            column = read(value, rows)
            if column is None or name in columns:
                raise MessageError(f"{where}: {form} of {show(name)} are not {rows} readings")
            columns[name] = column
    return columns


def encode_times(times: Sequence[int]) -> list[int]:
    """Return integers as the first and the differences."""
    return [now - before for now, before in zip(times, [0, *times[:-1]], strict=True)]


def decode_times(data: Any, where: str) -> tuple[int, ...]:
    """Read what :func:`encode_times` makes.

    Raises:
        MessageError: It is no such list, is empty or too long.
    """
    if not isinstance(data, list) or not 0 < len(data) <= MAX_ROWS:
        raise MessageError(f"{where} is not a list of 1 to {MAX_ROWS} times")
    column = _sums([0, *data], len(data))
    if column is None or any(type(time) is not int or time < 0 for time in column):
        raise MessageError(f"{where} has a time that is not an integer from 0")
    return tuple(time for time in column if isinstance(time, int))


def _deltas(column: Sequence[Number | None]) -> list[int | None] | None:
    """Return a column's delta form; None where a value has too many digits for it."""
    numbers = [None if value is None else Decimal(repr(value)) for value in column]
    exponents = [_exponent(number) for number in numbers if number is not None]
    exponent = min(exponents, default=0)
    if exponent < -_MAX_DECIMALS:
        return None
    scale = 10**-exponent
    result: list[int | None] = [exponent]
    total = 0
    for number in numbers:
        if number is None:
            result.append(None)
            continue
        value = int(number * scale)
        if abs(value) >= _MAX_SUM:
            return None
        result.append(value - total)
        total = value
    return result


def _exponent(number: Decimal) -> int:
    """Return the exponent that makes a number an integer, at most 0."""
    exponent = number.normalize().as_tuple().exponent
    return min(exponent, 0) if isinstance(exponent, int) else 0


def _sums(value: Any, rows: int) -> Column | None:
    """Return the column of a delta form; None if it is none."""
    if not isinstance(value, list) or len(value) != rows + 1:
        return None
    exponent, *deltas = value
    if type(exponent) is not int or not -_MAX_DECIMALS <= exponent <= 0:
        return None
    scale = 10**-exponent
    total, column = 0, list[Number | None]()
    for delta in deltas:
        if delta is None:
            column.append(None)
            continue
        if type(delta) is not int or abs(total + delta) >= _MAX_SUM:
            return None
        total += delta
        # Both are exact in doubles, so the quotient is the double nearest to the decimal.
        column.append(total if exponent == 0 else total / scale)
    return tuple(column)


def _constant(value: Any, rows: int) -> Column | None:
    return (value,) * rows if is_value(value) else None


def _list(value: Any, rows: int) -> Column | None:
    if not isinstance(value, list) or len(value) != rows or not all(map(is_value, value)):
        return None
    return tuple(value)


def _chars(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))
