"""How a server behaves and who may ask; light, for the agent has it before any model."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device.api.errors import ApiError
from device.limits import BODY_LIMIT_BYTES, QUEUE_LIMIT
from edgekit.errors import StorageError

if TYPE_CHECKING:  # httpx takes memory, and most servers route nothing
    from device.routing.router import Router


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server behaves.

    Attributes:
        queue_limit: Requests that may wait for a slot.
        timeout_s: Seconds after which a request is given up.
        body_limit_bytes: Largest body that is read.
        drain_s: Seconds that running requests have when the server or their model is to go.
        keys: Client by the sha256 (hex) of its API key; empty lets everyone ask.
        cors_origins: Pages of these origins may ask from a browser; ``*`` is all.
        stall_s: A step of the engine that takes longer is taken for one that hangs.
        router: Sends requests elsewhere; None answers all here. The server closes it.
    """

    queue_limit: int = QUEUE_LIMIT
    timeout_s: float = 600.0
    body_limit_bytes: int = BODY_LIMIT_BYTES
    drain_s: float = 30.0
    keys: Mapping[str, str] | None = None
    cors_origins: tuple[str, ...] = ()
    stall_s: float = 60.0
    router: Router | None = None

    def client_of(self, authorization: str | None, host: str) -> str:
        """Return whose a request is.

        Raises:
            ApiError: Keys are asked for and this is none.
        """
        if not self.keys:
            return host
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        for known, client in self.keys.items():
            if scheme.lower() == "bearer" and hmac.compare_digest(known, digest):
                return client
        raise ApiError(401, "Incorrect or missing API key", code="invalid_api_key")


def read_keys(path: Path) -> dict[str, str]:
    """Read a file of API keys: a line is ``CLIENT SHA256``, # begins a comment.

    Raises:
        StorageError: It cannot be read, or a line has another form; no key is shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise StorageError(
            f"cannot read the API keys in {path}: {error}", "Name another file of keys"
        ) from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        digest = words[1].lower() if len(words) == 2 else ""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise StorageError(
                f"line {number} of {path} is not a client's name and the sha256 of its key",
                "Make one with: printf %s KEY | sha256sum",
            )
        keys[digest] = words[0]
    if not keys:
        raise StorageError(f"{path} has no keys", "Name no file of keys to let everyone ask")
    return keys
