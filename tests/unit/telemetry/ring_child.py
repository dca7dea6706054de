"""Writes to a ring until it is killed, and says on standard output what the ring has promised.

Arguments: the ring's file, the seed. Lines: ``boot NAME``, ``put SEQ SEED:N`` after a put returned,
``ack FIRST LAST`` after an acknowledgement did.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from telemetry_fakes import FakeClock

from device.telemetry.ring import ALARM, SAMPLE, Limits, Ring

ROOM = Limits(file_bytes=1 << 40)
"""A fast machine fills the default in fifty lives, and then rows are dropped as they should be."""


def say(*lines: str) -> None:
    os.write(1, "".join(f"{line}\n" for line in lines).encode())


def main() -> None:
    """Put, take and acknowledge at random."""
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    ring = Ring(path, "1f0a52c3d4e5b6a7", FakeClock(), ROOM)
    say(f"boot {ring.boot}")
    count = 0
    while True:
        names = [f"{seed}:{count + i}" for i in range(chance.randint(1, 20))]
        count += len(names)
        payloads = [f"{name} {'x' * chance.randint(0, 3000)}".encode() for name in names]
        seq = ring.put(payloads, ALARM if chance.random() < 0.1 else SAMPLE)
        say(*(f"put {number} {name}" for number, name in zip(seq, names, strict=True)))
        if chance.random() < 0.3:
            rows = ring.take(chance.randint(1, 30))
            first, last = rows[0].seq, rows[len(rows) // 2].seq
            say(f"acking {first} {last}")
            ring.acknowledge(ring.boot, ((first, last),))
            say(f"ack {first} {last}")


if __name__ == "__main__":
    main()
