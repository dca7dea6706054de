"""The ring's SQLite file: made, opened, and put aside when it is broken.

WAL keeps what was committed through ``kill -9``, and ``synchronous = FULL`` through a power cut: a
commit returns once the log is on the disk. At one commit in ten seconds that is one flush of some
kilobytes. The lock is exclusive, so a second agent is refused and no shared-memory file is needed.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from edgekit.bundle.storage import sync_folder
from edgekit.errors import RingError

logger = logging.getLogger(__name__)

_VERSION = 1
_SCHEMA = """
CREATE TABLE life (id INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE, kernel TEXT NOT NULL,
                   next_seq INTEGER NOT NULL) STRICT;
CREATE TABLE row (id INTEGER PRIMARY KEY, priority INTEGER NOT NULL, monotonic_ms INTEGER NOT NULL,
                  time_ms INTEGER NOT NULL, clock INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE INDEX urgent ON row (priority) WHERE priority = 1;
CREATE TABLE dropped (reason TEXT PRIMARY KEY, rows INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
"""A row's id is ``life << SEQ_BITS | seq``, one key that orders all. Without rowids, rows of more
than a quarter page would each stand on a page of their own."""
SEQ_BITS = 40
_WAL_PAGES = 256
_KEPT_ASIDE = 2
_PARTS = ("", "-wal", "-shm", "-journal")


def open_file(path: Path) -> tuple[sqlite3.Connection, Path | None]:
    """Open the ring's file, or make it.

    Returns:
        The connection, and where a broken file was put aside; None if there was none.

    Raises:
        RingError: Another agent has it, the disk fails, or a newer release made it.
    """
    try:
        return _connect(path), None
    except sqlite3.DatabaseError as error:
        if not is_broken(error):
            raise failure(path, error) from error
        aside = put_aside(path)
        logger.exception("the ring %s is broken; its file is kept as %s", path, aside)
    try:
        return _connect(path), aside
    except sqlite3.DatabaseError as error:
        raise failure(path, error) from error


def is_broken(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file's bytes are wrong, rather than the disk or a lock.

    SQLITE_CORRUPT and SQLITE_NOTADB come as the base class itself (Modules/_sqlite/util.c);
    Python 3.10 tells no codes.
    """
    return type(error) is sqlite3.DatabaseError


def failure(path: Path, error: sqlite3.DatabaseError) -> RingError:
    """Return our error of one of SQLite's."""
    if "locked" in str(error):
        return RingError(f"another agent has the ring {path} open", "Stop it first")
    return RingError(f"the ring {path} fails: {error}", "Look for a full or failing disk")


def put_aside(path: Path) -> Path:
    """Rename a broken file and what belongs to it; of several, the newest two are kept.

    Raises:
        RingError: The folder cannot be written.
    """
    aside = path.with_name(f"{path.name}.broken-{time.time_ns()}")
    try:
        for part in _PARTS:
            found = path.with_name(path.name + part)
            if found.exists():
                found.rename(aside.with_name(aside.name + part))
        kept = sorted(path.parent.glob(f"{path.name}.broken-*[0-9]"))
        for old in kept[:-_KEPT_ASIDE]:
            for part in _PARTS:
                old.with_name(old.name + part).unlink(missing_ok=True)
    except OSError as error:
        raise RingError(f"cannot put {path} aside: {error.strerror}") from error
    return aside


def drop(db: sqlite3.Connection, reason: str, query: str, arguments: tuple[int | str, ...]) -> int:
    """Delete the rows that a query names, and count them for good."""
    rows = db.execute(query, arguments).fetchall()
    if rows:
        db.executemany("DELETE FROM row WHERE id = ?", rows)
        db.execute(
            "INSERT INTO dropped VALUES (?, ?) "
            "ON CONFLICT (reason) DO UPDATE SET rows = rows + excluded.rows",
            (reason, len(rows)),
        )
    return len(rows)


def forget_lives(db: sqlite3.Connection) -> None:
    """Delete the names of earlier boots that have no rows."""
    db.execute(
        "DELETE FROM life WHERE id < (SELECT max(id) FROM life) "
        "AND id NOT IN (SELECT id >> 40 FROM row)"
    )


def used_bytes(db: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use, those of this transaction included."""
    pages, free, size = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _connect(path: Path) -> sqlite3.Connection:
    """Open, check and if need be make the tables.

    Raises:
        sqlite3.DatabaseError: As SQLite says.
        RingError: The folder cannot be made, or a newer release made the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RingError(f"cannot make {path.parent}: {error.strerror}") from error
    new = not path.exists()
    db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        _check(db)
        _make_tables(db, path)
    except BaseException:
        db.close()
        raise
    if new:
        sync_folder(path.parent)
    return db


def _check(db: sqlite3.Connection) -> None:
    """Read the whole file once; a ring that is full takes a fraction of a second."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


def _make_tables(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _VERSION:
        raise RingError(
            f"the ring {path} is of version {version}, this edgekit reads {_VERSION}",
            "Update edgekit, or move the file away",
        )
    if version == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
