"""Reading the package's own TOML tables into frozen dataclasses, strictly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


@cache
def read_table(name: str) -> Mapping[str, Any]:
    """Return a TOML file of this package."""
    text = files("edgekit.plan").joinpath(name).read_text(encoding="utf-8")
    return tomllib.loads(text)


def fill(kind: type[T], data: Mapping[str, Any], **more: Any) -> T:
    """Fill a dataclass from a table; floats may be written as integers.

    Raises:
        ValueError: A key is unknown.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if unknown := set(data) - set(known):
        raise ValueError(f"{kind.__name__} has no {sorted(unknown)}")
    values = {
        key: float(value) if str(known[key].type) == "float" else value
        for key, value in data.items()
    }
    return kind(**values, **more)
