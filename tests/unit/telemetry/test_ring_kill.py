"""The ring through ``kill -9`` and power cuts: what it promised is there, once, as it was put."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ring_child import ROOM
from telemetry_fakes import FakeClock

from device.telemetry.ring import Ring

KERNEL = "1f0a52c3d4e5b6a7"
CHILD = Path(__file__).with_name("ring_child.py")
KILLS = 50


@dataclass
class Promises:
    """What children have said: numbers that must be there, must not, or may be."""

    held: dict[int, str] = field(default_factory=dict)
    ever: dict[int, str] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    going: set[int] = field(default_factory=set)
    boots: set[str] = field(default_factory=set)

    def take_in(self, said: str) -> None:
        """Take in a child's whole lines; the last may be cut."""
        for line in said.split("\n")[:-1]:
            word, *rest = line.split(" ")
            if word == "boot":
                self.boots.add(rest[0])
            elif word == "put":
                number = int(rest[0])
                assert number not in self.ever, "a number was given twice"
                self.held[number] = self.ever[number] = rest[1]
            else:
                numbers = set(range(int(rest[0]), int(rest[1]) + 1))
                self.going = numbers
                if word == "ack":
                    self.gone |= numbers
                    self.going = set()
        self.held = {n: name for n, name in self.held.items() if n not in self.gone}

    def check(self, found: dict[int, bytes]) -> None:
        """Compare with the file, of which reading by number shows every row once."""
        missing = set(self.held) - set(found) - self.going
        assert not missing, f"promised and lost: {sorted(missing)[:10]}"
        assert not self.gone & set(found)
        for number in set(found) & set(self.ever):
            assert found[number].decode().split(" ")[0] == self.ever[number]


def rows(path: Path) -> tuple[str, dict[int, bytes]]:
    """Return the life's name and the rows of a ring, as the ring itself reads them."""
    ring = Ring(path, KERNEL, FakeClock(), ROOM)
    found = ring._db.execute("SELECT id & (1 << 40) - 1, payload FROM row").fetchall()
    assert len({seq for seq, _ in found}) == len(found)
    assert not ring.moved_aside
    ring.close()
    return ring.boot, dict(found)


def run_and_kill(path: Path, seed: int, delay_s: float) -> str:
    """Let a child write, kill it, return what it said."""
    with subprocess.Popen(
        [sys.executable, str(CHILD), str(path), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(CHILD.parent)])},
    ) as child:
        assert child.stdout is not None
        first = child.stdout.readline()  # it has the ring open from here on
        time.sleep(delay_s)
        child.kill()
        return first + child.stdout.read()


def test_what_was_stored_outlives_kill_9(tmp_path: Path) -> None:
    """50 children write to one ring and are killed at random moments: no row is lost or double."""
    path = tmp_path / "ring.db"
    chance = random.Random(20261125)
    promises = Promises()
    for seed in range(KILLS):
        promises.take_in(run_and_kill(path, seed, chance.uniform(0, 0.15)))
        boot, found = rows(path)
        promises.check(found)
        promises.boots.add(boot)
        # Rows of a put that was killed before it could say so are there all the same.
        promises.held.update({n: p.decode().split(" ")[0] for n, p in found.items()})
        promises.ever.update(promises.held)
        promises.going = set()
        promises.held = {n: name for n, name in promises.held.items() if n in found}
    assert len(promises.boots) == 1
    assert len(promises.ever) > 500
    assert len(promises.gone) > 50


def test_a_log_that_is_torn_anywhere_is_a_shorter_past(tmp_path: Path) -> None:
    """A power cut may leave any part of the log: the ring opens with the first puts, whole ones."""
    path = tmp_path / "ring.db"
    ring = Ring(path, KERNEL, FakeClock())
    for index in range(30):
        ring.put([b"%d.%d" % (index, part) + b"x" * 400 for part in range(3)])
    log = path.with_name("ring.db-wal").read_bytes()
    base = path.read_bytes()
    ring.close()
    chance = random.Random(7)
    lengths = set()
    for case in range(60):
        cut = chance.randrange(len(log))
        torn = log[:cut] + (chance.randbytes(chance.randrange(9000)) if case % 2 else b"")
        folder = tmp_path / f"case{case}"
        folder.mkdir()
        (folder / "ring.db").write_bytes(base)
        (folder / "ring.db-wal").write_bytes(torn)
        again = Ring(folder / "ring.db", KERNEL, FakeClock())
        seq = [n for (n,) in again._db.execute("SELECT id & (1 << 40) - 1 FROM row ORDER BY id")]
        assert seq == list(range(1, len(seq) + 1))
        assert len(seq) % 3 == 0
        assert again.put([b"next"]) == [len(seq) + 1]
        again.close()
        lengths.add(len(seq))
        shutil.rmtree(folder)
    assert len(lengths) > 10
