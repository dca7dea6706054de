"""Types of JSON values, checked field by field: what a reader relies on is so, or is named.

A document that carries a right digest may still be another program's, or made to mislead. Readers
check the fields they use here, once, and index without care after that. Unknown fields pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import BundleError

_SHOWN_CHARS = 40
MAX_NAME_CHARS = 1000


def _is_integer(value: Any) -> bool:
    return type(value) is int  # a bool is an int to isinstance


def _is_count(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in {int, float}


def _is_integers(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, list) and all(map(_is_integer, value)))


def is_name(value: Any) -> bool:
    """Whether a value can stand in an error's one line: a string, printable and not long."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and value.isprintable()


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a string", lambda value: isinstance(value, str)),
    "name": ("a short printable string", is_name),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "count": ("an integer from 0", _is_count),
    "positive": ("an integer from 1", lambda value: _is_count(value) and value > 0),
    "number": ("a number", _is_number),
    "integers": ("an integer or a list of integers", _is_integers),
    "counts": (
        "a list of integers from 0",
        lambda value: isinstance(value, list) and all(map(_is_count, value)),
    ),
    "object": ("an object", lambda value: isinstance(value, Mapping)),
    "list": ("a list", lambda value: isinstance(value, list)),
}
"""Name of a kind to what it is in words, and its test; ``text?`` is a ``text`` or null."""


def check_fields(data: Any, kinds: Mapping[str, str], where: str) -> None:
    """Check the fields of a JSON object that a reader relies on.

    Args:
        data: What was parsed.
        kinds: Key to a name of :data:`KINDS`; with a question mark null is right, too.
        where: What to call the object in errors.

    Raises:
        BundleError: It is no object, lacks a key, or a value is of another kind.
    """
    if not isinstance(data, Mapping):
        raise BundleError(f"{where} is not a JSON object")
    for key, kind in kinds.items():
        if key not in data:
            raise BundleError(f"{where} lacks {show(key)}")
        words, is_kind = KINDS[kind.rstrip("?")]
        value = data[key]
        if not (is_kind(value) or (value is None and kind.endswith("?"))):
            raise BundleError(f"{where}: {show(key)} must be {words}, not {show(value)}")


def check_rows(data: Any, kinds: Mapping[str, str], where: str, limit: int) -> None:
    """Check a list of objects by :func:`check_fields`.

    Raises:
        BundleError: It is no list, has more than ``limit`` rows, or a row is wrong.
    """
    if not isinstance(data, list):
        raise BundleError(f"{where} is not a list")
    if len(data) > limit:
        raise BundleError(f"{where} lists {len(data)} entries, at most {limit}")
    for index, row in enumerate(data):
        check_fields(row, kinds, f"{where}[{index}]")


def check_choice(value: str, choices: tuple[str, ...], where: str) -> None:
    """Refuse a value that is none of ``choices``.

    Raises:
        BundleError: Names the value and the choices.
    """
    if value not in choices:
        raise BundleError(f"{where} is {show(value)}, not one of {', '.join(choices)}")


def show(value: Any) -> str:
    """Return a value for an error's line: ASCII, and cut where it is long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
