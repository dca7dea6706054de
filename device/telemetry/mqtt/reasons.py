"""What a broker's reason codes mean for the next try (MQTT 5.0, 2.4).

| kind | codes | next try |
|---|---|---|
| ``link`` | none: the connection broke | soon, full jitter |
| ``busy`` | unavailable, shutting down, quota, rate | from a wide window: all are told at once |
| ``config`` | not authorized, bad name, banned, protocol, moved | slowly: an operator has to act |
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = LINK, BUSY, CONFIG = "link", "busy", "config"
_BUSY = frozenset({0x88, 0x89, 0x8B, 0x93, 0x96, 0x97, 0x98, 0x9F, 0xA0})
"""Server unavailable, busy, shutting down, receive maximum, message rate, quota, administrative
action, connection rate, maximum connect time."""
_LINK = frozenset({0x00, 0x80, 0x83, 0x8D})
"""No reason, unspecified, implementation specific, keep alive timeout."""
USE_ANOTHER_SERVER, SERVER_MOVED = 0x9C, 0x9D
FAILURE = 0x80
"""Codes from here on are failures."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a connection ended or was refused.

    Attributes:
        text: For the log.
        code: The broker's; None if it said nothing.
        reference: The server that it named instead, if it did; it is told, not followed.
    """

    text: str
    code: int | None = None
    reference: str | None = None

    @property
    def kind(self) -> str:
        """``link``, ``busy`` or ``config``."""
        if self.code is None or self.code in _LINK:
            return LINK
        return BUSY if self.code in _BUSY else CONFIG

    def __str__(self) -> str:
        moved = f"; it names {self.reference} instead" if self.reference else ""
        return self.text + moved
