"""Strict reading of a TOML table into a dataclass."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from device.routing.errors import RoutingConfigError

T = TypeVar("T")
_LARGEST = 2**53
_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int,),
    "float": (float, int),
    "float | None": (float, int),
    "str": (str,),
    "str | None": (str,),
}


def read_table(kind: type[T], table: Mapping[str, Any], source: str) -> T:
    """Return a dataclass filled with a table's values.

    Its fields are of the types above or ``tuple[str, ...]``; numbers are not negative.

    Args:
        kind: The dataclass.
        table: Keys and values.
        source: What to call the table in errors.

    Raises:
        RoutingConfigError: An unknown or missing key, a wrong type or an impossible number.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(known)}"
            raise RoutingConfigError(f"{source} has an unknown key {reprlib.repr(key)}", hint)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in table]
    if missing:
        raise RoutingConfigError(f"{source} lacks {missing[0]}", "See docs/routing.md")
    return kind(**{key: _value(str(known[key].type), v, key, source) for key, v in table.items()})


def _value(kind: str, value: Any, key: str, source: str) -> Any:
    """Return a value of the wanted type."""
    if kind == "tuple[str, ...]":
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise RoutingConfigError(f"{source}: {key} must be an array of strings")
        return tuple(value)
    if type(value) not in _KINDS[kind]:  # by type: true is no number
        wanted = kind.partition(" ")[0]
        raise RoutingConfigError(
            f"{source}: {key} must be of type {wanted}, got {reprlib.repr(value)}"
        )
    if isinstance(value, int | float) and not 0 <= value <= _LARGEST:  # NaN is within no range
        raise RoutingConfigError(f"{source}: {key} must be 0 to {_LARGEST}, got {value}")
    return float(value) if kind.startswith("float") else value
