"""The ring: what the cloud's store has not acknowledged, on disk, bounded.

A row is a sample or an alarm. It gets its number when it is put, is handed out newest first, alarms
before samples, and leaves only when the store says that it has it, or when the ring is full: the
oldest samples first, alarms last. The broker's PUBACK frees nothing: it says that a row is on its
way, so that it is not sent again before the store had time to answer (ADR 17).

What is on its way is known in memory alone: after a restart all is sent again, and the store drops
what it has. Numbers are never given twice, for what is deleted leaves its mark in the same commit.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device.telemetry.clock import Clock
from device.telemetry.in_flight import InFlight
from device.telemetry.ring_file import (
    SEQ_BITS,
    drop,
    failure,
    forget_lives,
    is_broken,
    open_file,
    put_aside,
    used_bytes,
)
from edgekit.contracts.message import CLOCKS
from edgekit.contracts.seq_ranges import Ranges
from edgekit.errors import RingError

logger = logging.getLogger(__name__)

SAMPLE, ALARM = 0, 1
"""Priorities: the higher one is sent first and dropped last."""
SYNCED, UNSYNCED, REDATED = (CLOCKS.index(name) for name in ("synced", "unsynced", "redated"))
DROP_REASONS = ("age", "full", "unsendable", "broken")
"""Labels of ``ring_dropped_total``; all are told from the start, for a counter that begins above 0
has no increase, and its first rise would alert nobody."""
_DROPPED_AT_ONCE = 256
_DAY_MS = 86_400_000
_SEQ_MASK = (1 << SEQ_BITS) - 1
_NEWEST = {  # 40 and 1099511627775 are SEQ_BITS and _SEQ_MASK
    SAMPLE: "SELECT boot, row.id & 1099511627775, time_ms, clock, payload FROM row "
    "CROSS JOIN life ON life.id = row.id >> 40 WHERE priority = 0 ORDER BY row.id DESC",
    ALARM: "SELECT boot, row.id & 1099511627775, time_ms, clock, payload FROM row "
    "CROSS JOIN life ON life.id = row.id >> 40 WHERE priority = 1 ORDER BY row.id DESC",
}
_AGED = "SELECT id FROM (SELECT * FROM row ORDER BY id LIMIT ?) WHERE clock <> ? AND time_ms < ?"
_DROPPABLE = (
    "SELECT id FROM row WHERE priority = 0 ORDER BY id LIMIT ?",
    "SELECT id FROM row WHERE priority = 1 ORDER BY id LIMIT ?",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the ring keeps.

    Attributes:
        file_bytes: Pages in use, less than the file and its log have.
        age_ms: Rows whose time is known and older are dropped.
        answer_ms: How long the store may take to acknowledge what the broker has.
    """

    file_bytes: int = 64 * 1024**2
    age_ms: int = 14 * _DAY_MS
    answer_ms: int = 120_000


@dataclass(frozen=True, slots=True)
class Row:
    """What the ring holds.

    Attributes:
        boot: Life of the ring that numbered it.
        seq: Its number.
        priority: ``SAMPLE`` or ``ALARM``.
        time_ms: When.
        clock: What the time is worth, one of ``CLOCKS``.
        payload: As it was put.
    """

    boot: str
    seq: int
    priority: int
    time_ms: int
    clock: str
    payload: bytes


class Ring:
    """Keeps rows until they are acknowledged; any thread may call it.

    Args:
        path: Its file; a broken one is put aside and reported.
        kernel: Name of the kernel's boot (``device.telemetry.clock.boot_id``).
        clock: Dates the rows.
        limits: How much it keeps.

    Attributes:
        boot: Name of this life: the kernel's boot and, since a ring that is lost in the middle of
            one must not give its numbers again, random digits of the file.
        moved_aside: Where broken files were put since this object was made.

    Raises:
        RingError: Another agent has the file, or the disk fails.
    """

    def __init__(self, path: Path, kernel: str, clock: Clock, limits: Limits | None = None) -> None:
        self._path = path
        self._kernel = kernel
        self._clock = clock
        self._limits = limits or Limits()
        self._lock = threading.RLock()
        self._in_flight = InFlight(self._limits.answer_ms)
        self.moved_aside: list[Path] = []
        self._db: sqlite3.Connection
        self._life: int
        self._next: int
        self._rows: int
        self._open()

    def put(self, payloads: Sequence[bytes], priority: int = SAMPLE) -> list[int]:
        """Keep rows; once this returns they outlive a crash and a power cut.

        Args:
            payloads: Of rows of now.
            priority: ``SAMPLE`` or ``ALARM``.

        Returns:
            Their numbers.

        Raises:
            RingError: The disk fails or is full; nothing of it was kept.
        """
        clock = SYNCED if self._clock.is_synced() else UNSYNCED
        moment = (self._clock.monotonic_ms(), self._clock.time_ms(), clock)
        with self._transaction() as db:
            first = self._next
            db.executemany(
                "INSERT INTO row VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (_row_id(self._life, first + index), priority, *moment, payload)
                    for index, payload in enumerate(payloads)
                ],
            )
            dropped = self._make_room(db, first + len(payloads))
        self._next = first + len(payloads)
        self._rows += len(payloads) - dropped
        return list(range(first, self._next))

    def take(self, limit: int, priority: int = SAMPLE) -> list[Row]:
        """Hand out rows that are not on their way, the newest of one life and kind of clock.

        Args:
            limit: Most rows.
            priority: Only these.

        Returns:
            Rows in ascending order; they are on their way from now on.

        Raises:
            RingError: The disk fails.
        """
        with self._guarded() as db:
            now_ms = self._clock.monotonic_ms()
            self._in_flight.forget_late(now_ms)
            found: list[Row] = []
            for boot, seq, time_ms, clock, payload in db.execute(_NEWEST[priority]):
                if self._in_flight.holds(boot, seq):
                    continue
                kind = CLOCKS[clock]
                if found and (found[0].boot, found[0].clock) != (boot, kind):
                    break
                found.append(Row(boot, seq, priority, time_ms, kind, payload))
                if len(found) == limit:
                    break
            for row in found:
                self._in_flight.add(row.boot, row.seq, now_ms)
            return found[::-1]

    def has_waiting(self, priority: int = SAMPLE) -> bool:
        """Whether there are rows that are not on their way.

        Raises:
            RingError: The disk fails.
        """
        with self._guarded() as db:
            self._in_flight.forget_late(self._clock.monotonic_ms())
            rows = db.execute(_NEWEST[priority])
            return any(not self._in_flight.holds(boot, seq) for boot, seq, *_ in rows)

    def published(self, boot: str, seq: Ranges, answer_ms: int | None = None) -> None:
        """Note that the broker has rows (PUBACK): the store's time to answer runs from now.

        Args:
            boot: Whose.
            seq: Which.
            answer_ms: That time; None for the limits'.
        """
        with self._lock:
            self._in_flight.extend(boot, seq, self._clock.monotonic_ms(), answer_ms)

    def release(self, boot: str, seq: Ranges) -> None:
        """Note that rows were not sent after all: they may be taken again."""
        with self._lock:
            self._in_flight.remove(boot, seq)

    def release_all(self) -> None:
        """Note that a session was lost with what was on its way."""
        with self._lock:
            self._in_flight = InFlight(self._limits.answer_ms)

    def acknowledge(self, boot: str, seq: Ranges) -> int:
        """Forget rows that the store has; numbers that are not here are let be.

        Returns:
            How many rows left.

        Raises:
            RingError: The disk fails; they will be sent and acknowledged again.
        """
        with self._transaction() as db:
            life = db.execute("SELECT id FROM life WHERE boot = ?", (boot,)).fetchone()
            if life is None:
                return 0
            gone = 0
            for first, last in seq:
                gone += db.execute(
                    "DELETE FROM row WHERE id BETWEEN ? AND ?",
                    (_row_id(life[0], first), _row_id(life[0], last)),
                ).rowcount
            self._mark(db, self._next)
        self._rows -= gone
        self.release(boot, seq)
        return gone

    def discard(self, row: Row, reason: str) -> None:
        """Drop a row that cannot be sent; it counts as dropped.

        Args:
            row: It.
            reason: One of :data:`DROP_REASONS`.

        Raises:
            RingError: The disk fails.
        """
        with self._transaction() as db:
            query = (
                "SELECT row.id FROM row JOIN life ON life.id = row.id >> 40 "
                "WHERE boot = ? AND row.id & 1099511627775 = ?"
            )
            gone = drop(db, reason, query, (row.boot, row.seq))
            self._mark(db, self._next)
        self._rows -= gone
        self.release(row.boot, ((row.seq, row.seq),))

    def redate(self) -> int:
        """Date the rows of this boot that an unsynced clock had dated; call it once it is synced.

        Returns:
            How many.

        Raises:
            RingError: The disk fails.
        """
        offset_ms = self._clock.time_ms() - self._clock.monotonic_ms()
        with self._transaction() as db:
            return db.execute(
                "UPDATE row SET time_ms = monotonic_ms + ?, clock = ? "
                "WHERE clock = ? AND id BETWEEN ? AND ?",
                (offset_ms, REDATED, UNSYNCED, *self._ids),
            ).rowcount

    def values(self) -> dict[str, int]:
        """Return its readings.

        Raises:
            RingError: The disk fails.
        """
        with self._guarded() as db:
            dropped = dict(db.execute("SELECT reason, rows FROM dropped").fetchall())
            dropped["broken"] = len(self.moved_aside)
            return {
                "ring_rows": self._rows,  # counted along: SQLite would read the whole file
                "ring_file_bytes": used_bytes(db),
                **{
                    f"ring_dropped_total.{reason}": dropped.get(reason, 0)
                    for reason in {*DROP_REASONS, *dropped}
                },
            }

    def close(self) -> None:
        """Close the file; what it holds stays."""
        with self._lock:
            self._db.close()

    def _open(self) -> None:
        """Open the file and find, or begin, this life of it."""
        self._db, aside = open_file(self._path)
        if aside is not None:
            self.moved_aside.append(aside)
        with self._transaction() as db:
            self._rows = db.execute("SELECT count(*) FROM row").fetchone()[0]
            life = db.execute(
                "SELECT id, boot, next_seq FROM life WHERE kernel = ?", (self._kernel,)
            ).fetchone()
            if life is None:
                boot = f"{self._kernel}-{secrets.token_hex(4)}"
                db.execute(
                    "INSERT INTO life (boot, kernel, next_seq) VALUES (?, ?, 1)",
                    (boot, self._kernel),
                )
                self._life = db.execute("SELECT max(id) FROM life").fetchone()[0]
                self.boot, self._next = boot, 1
                forget_lives(db)
                return
            self._life, self.boot, marked = life
            newest = db.execute(
                "SELECT max(id) FROM row WHERE id BETWEEN ? AND ?", self._ids
            ).fetchone()[0]
            self._next = max(marked, ((newest or 0) & _SEQ_MASK) + 1)

    @property
    def _ids(self) -> tuple[int, int]:
        """The first and the last id that this life can have."""
        return _row_id(self._life, 0), _row_id(self._life, _SEQ_MASK)

    def _make_room(self, db: sqlite3.Connection, next_seq: int) -> int:
        """Drop what is too old or too much, of the latter samples before alarms; return rows."""
        dropped = 0
        if self._clock.is_synced():
            oldest_ms = self._clock.time_ms() - self._limits.age_ms
            dropped += drop(db, "age", _AGED, (_DROPPED_AT_ONCE, UNSYNCED, oldest_ms))
        for query in _DROPPABLE:
            while used_bytes(db) > self._limits.file_bytes:
                rows = drop(db, "full", query, (_DROPPED_AT_ONCE,))
                dropped += rows
                if rows == 0:
                    break
        if dropped:
            self._mark(db, next_seq)
        return dropped

    def _mark(self, db: sqlite3.Connection, next_seq: int) -> None:
        """Keep the next number in the commit that deletes: it is never worked out from nothing."""
        db.execute("UPDATE life SET next_seq = ? WHERE id = ?", (next_seq, self._life))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit what is done to the file, or none of it."""
        with self._guarded() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        """Make SQLite's errors ours; of a broken file begin a new one first.

        Raises:
            RingError: The disk fails, or the file was broken and is put aside.
        """
        with self._lock:
            try:
                yield self._db
            except sqlite3.DatabaseError as error:
                if not is_broken(error):
                    raise failure(self._path, error) from error
                self._replace(error)

    def _replace(self, error: sqlite3.DatabaseError) -> None:
        """Put the broken file aside and begin a new one, whose numbers are another life's."""
        self._db.close()
        aside = put_aside(self._path)
        logger.error("the ring %s broke (%s); its file is kept as %s", self._path, error, aside)
        self.moved_aside.append(aside)
        self.release_all()
        self._open()
        raise RingError(
            f"the ring {self._path} broke: {error}", f"A new one is in use; the old is {aside}"
        ) from error


def _row_id(life: int, seq: int) -> int:
    """Return a row's id; a number beyond what the ring gives is of no row, as is its neighbour."""
    return life << SEQ_BITS | min(seq, _SEQ_MASK)
