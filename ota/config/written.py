"""Documents as people write them: TOML, read strictly, made into what is signed.

    kind = "configuration"          # or "command"
    tenant = "acme"
    cohort = "eu"                   # or: device = "orin-1"
    counter = 8                     # left out: the next one after what is published (--documents)
    valid_hours = 720

    [settings.routing]
    cloud = false

A command has ``device``, ``id`` (left out: made up), ``command`` and a table ``arguments``.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from edgekit.contracts.fields import show
from edgekit.contracts.signed import AUDIENCES, Audience, Command, Configuration, Document
from edgekit.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_HOURS: Final = 24 * 366
_REMEDY: Final = "docs/remote-config.md has an example of each"
_COMMON: Final = {"kind": str, "tenant": str, "counter": int, "valid_hours": (int, float)}
_KEYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "configuration": {**_COMMON, "device": str, "cohort": str, "settings": dict},
    "command": {**_COMMON, "device": str, "id": str, "command": str, "arguments": dict},
}
_NEEDED: Final = {
    "configuration": ("tenant", "valid_hours", "settings"),
    "command": ("tenant", "valid_hours", "device", "command"),
}


def document_of(
    data: bytes, where: str, now_ms: int, highest: Callable[[Document], int] | None = None
) -> Document:
    """Return the document that a TOML file describes.

    Args:
        data: The file.
        where: What to call it in errors.
        now_ms: When it is issued.
        highest: Tells the highest published counter of a document's scope; needed where the file
            has no counter.

    Raises:
        ConfigError: It is no TOML, or says too little or what means nothing.
        MessageError: A name is none.
    """
    try:
        said = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not valid TOML: {error}", _REMEDY) from error
    kind = said.get("kind")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ConfigError(f"{where}: kind {show(kind)} is not one of {', '.join(_KEYS)}", _REMEDY)
    _check(said, kind, where)
    make = _configuration if kind == "configuration" else _command
    made = make(said, where, now_ms)
    document = type(made).from_bytes(made.to_bytes())  # names are checked where they are read
    if "counter" in said:
        return document
    if highest is None:
        raise ConfigError(f"{where} has no counter", "Write one, or give --documents")
    return replace(document, counter=highest(document) + 1)


def _check(said: Mapping[str, Any], kind: str, where: str) -> None:
    known = _KEYS[kind]
    for key, value in said.items():
        if key not in known:
            raise ConfigError(f"{where}: a {kind} has no key {show(key)}", _REMEDY)
        if isinstance(value, bool) or not isinstance(value, known[key]):
            raise ConfigError(f"{where}: {key} is {show(value)}, of the wrong type", _REMEDY)
    for key in _NEEDED[kind]:
        if key not in said:
            raise ConfigError(f"{where} lacks {key}", _REMEDY)
    if not 0 < said["valid_hours"] <= MAX_HOURS:
        raise ConfigError(f"{where}: valid_hours is not above 0 and at most {MAX_HOURS}", _REMEDY)
    if said.get("counter", 1) < 1:
        raise ConfigError(f"{where}: counter is below 1", _REMEDY)


def _configuration(said: Mapping[str, Any], where: str, now_ms: int) -> Configuration:
    named = [kind for kind in AUDIENCES if kind in said]
    if len(named) != 1:
        raise ConfigError(f"{where} names not exactly one of {' and '.join(AUDIENCES)}", _REMEDY)
    return Configuration(
        tenant=said["tenant"],
        audience=Audience(named[0], said[named[0]]),
        counter=said.get("counter", 1),
        issued_ms=now_ms,
        expires_ms=now_ms + round(said["valid_hours"] * 3_600_000),
        settings=said["settings"],
    )


def _command(said: Mapping[str, Any], where: str, now_ms: int) -> Command:
    del where
    return Command(
        id=said.get("id", f"c-{secrets.token_hex(8)}"),
        tenant=said["tenant"],
        device=said["device"],
        counter=said.get("counter", 1),
        issued_ms=now_ms,
        expires_ms=now_ms + round(said["valid_hours"] * 3_600_000),
        command=said["command"],
        arguments=said.get("arguments", {}),
    )
