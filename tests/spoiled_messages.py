"""Messages of a device as a hostile or broken one might send them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from fleet_cases import alarm, batch_of, batch_payload, health, sample

NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    10**30,
    0.5,
    1e-5,
    1e300,
    True,
    None,
    "x",
    [],
]
SEEDS = [
    ("m/batch", "json", batch_of(range(1, 9)).to_bytes()),
    ("m/batch", "zstd-ek1", batch_payload(range(1, 9))),
    ("m/batch", "zstd", batch_payload(range(1, 9), encoding="zstd")),
    ("m/sample", "json", sample(1).to_bytes()),
    ("a/temperature", "json", alarm(1).to_bytes()),
    ("status/health", "json", health().to_bytes()),
]


def spoiled_message(chance: random.Random) -> tuple[str, str, bytes]:
    """Return channel and type, encoding, and payload; some are right by chance."""
    kind, encoding, payload = chance.choice(SEEDS)
    return kind, encoding, chance.choice(_mutations(chance))(payload)


def _mutations(chance: random.Random) -> list[Callable[[bytes], bytes]]:
    """Return ways to spoil a payload."""

    def flip(data: bytes) -> bytes:
        spoiled = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            spoiled[chance.randrange(len(spoiled))] ^= 1 << chance.randrange(8)
        return bytes(spoiled)

    def cut(data: bytes) -> bytes:
        return data[: chance.randrange(len(data))]

    def insert(data: bytes) -> bytes:
        at = chance.randrange(len(data))
        return data[:at] + chance.randbytes(chance.randrange(1, 9)) + data[at:]

    def number(data: bytes) -> bytes:
        at = chance.randrange(len(data))
        return data[:at] + json.dumps(chance.choice(NUMBERS)).encode() + data[at + 1 :]

    def nonsense(data: bytes) -> bytes:
        return chance.randbytes(chance.randrange(len(data)))

    return [flip, cut, insert, number, nonsense]
