"""Strict reading of TOML: an unknown key is an error, and so is a value of another type."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_LARGEST = 2**53
_DOCUMENTS = "See docs/agent.md, docs/routing.md and docs/telemetry.md"
_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "int | None": (int,),
    "float": (float, int),
    "float | None": (float, int),
    "str": (str,),
    "str | None": (str,),
    "Path": (str,),
    "Path | None": (str,),
}


def read_toml(path: Path, remedy: str) -> dict[str, Any]:
    """Return a TOML file.

    Args:
        path: Of it.
        remedy: What to do where it cannot be read.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}", remedy) from error
    except (ValueError, RecursionError) as error:  # of UTF-8, too
        raise ConfigError(f"{path} is not valid TOML: {error}", remedy) from error


def read_table(
    kind: type[T], table: Mapping[str, Any], source: str, without: Collection[str] = ()
) -> T:
    """Return a dataclass filled with a table's values.

    Its fields are of the types above or ``tuple[str, ...]``; numbers are not negative.

    Args:
        kind: The dataclass.
        table: Keys and values.
        source: What to call the table in errors.
        without: Fields that are no keys.

    Raises:
        ConfigError: An unknown or missing key, a wrong type or an impossible number.
    """
    known = {f.name: f for f in fields(kind) if f.name not in without}  # type: ignore[arg-type]  # a dataclass
    refuse_unknown(table, known, source)
    missing = [n for n, f in known.items() if f.default is MISSING and n not in table]
    if missing:
        raise ConfigError(f"{source} lacks {missing[0]}", _DOCUMENTS)
    return kind(**{key: _value(str(known[key].type), v, key, source) for key, v in table.items()})


def refuse_unknown(table: Mapping[str, Any], known: Collection[str], source: str) -> None:
    """Refuse keys that nobody knows: they may be misspelt.

    Raises:
        ConfigError: There is one.
    """
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid keys: {', '.join(known)}"
            raise ConfigError(f"{source} has an unknown key {reprlib.repr(key)}", hint)


def _value(kind: str, value: Any, key: str, source: str) -> Any:
    """Return a value of the wanted type."""
    if kind == "tuple[str, ...]":
        if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise ConfigError(f"{source}: {key} must be an array of strings")
        return tuple(value)
    if type(value) not in _KINDS[kind]:  # by type: true is no number
        wanted = kind.partition(" ")[0].replace("Path", "str")
        raise ConfigError(f"{source}: {key} must be of type {wanted}, got {reprlib.repr(value)}")
    if isinstance(value, int | float) and not 0 <= value <= _LARGEST:  # NaN is within no range
        raise ConfigError(f"{source}: {key} must be 0 to {_LARGEST}, got {value}")
    if kind.startswith("Path"):
        if not value:
            raise ConfigError(f"{source}: {key} is empty", "Give a path, or leave the key out")
        return Path(value)
    return float(value) if kind.startswith("float") else value
