"""Canonical JSON: the only bytes that are ever hashed or signed.

The form is a subset of RFC 8785 (JCS): UTF-8, object keys sorted by code point, no white space,
strings escaped only where JSON demands it, integers as such. Floats are written as Python's
``repr`` of the shortest decimal that reads back to the same double; NaN and infinity do not exist.
Integers outside +-2**53 are refused, since other readers would round them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgekit.contracts.fields import show
from edgekit.errors import BundleError

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 32
_MAX_INTEGER = 2**53


def canonical_bytes(value: Any) -> bytes:
    """Return the canonical encoding of a JSON value.

    Raises:
        BundleError: The value is not JSON, or holds a number or text other readers would change.
    """
    _check(value, 0)
    text = json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON's \u can write
        raise BundleError(f"a string is not Unicode text: {error.reason}") from error


def parse_document(data: bytes, what: str, limit_bytes: int = MAX_DOCUMENT_BYTES) -> dict[str, Any]:
    """Parse a JSON object strictly: size-limited, no duplicate keys, no NaN.

    Args:
        data: The document.
        what: What to call it in errors.
        limit_bytes: Largest size accepted.

    Raises:
        BundleError: It is not such an object.
    """
    if len(data) > limit_bytes:
        raise BundleError(f"{what} has {len(data)} bytes, at most {limit_bytes} are read")
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
        _check(value, 0)
    except (ValueError, RecursionError, BundleError) as error:  # a long integer is a ValueError
        said = error.message if isinstance(error, BundleError) else error
        raise BundleError(f"{what} is not valid JSON: {said}") from error
    if not isinstance(value, dict):
        raise BundleError(f"{what} must be a JSON object")
    return value


def read_limited(path: Path, limit_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Return a file's bytes; one that is larger than a document may be is not read.

    Raises:
        BundleError: It is larger.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise BundleError(f"{path} is larger than the {limit_bytes} bytes that are read")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise BundleError("an object has the same key twice")
    return result


def _refuse_constant(name: str) -> Any:
    raise BundleError(f"{name} is not a JSON number")


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BundleError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BundleError(f"key {key!r} is not a string")
            _check(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check(item, depth + 1)
    else:
        _check_scalar(value)


def _check_scalar(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"{value} is not a JSON number")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise BundleError(f"integer {show(value)} is outside +-2**53")
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise BundleError(f"{type(value).__name__} is not a JSON type")
