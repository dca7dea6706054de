"""Backups of the store and their way back.

SQLite is copied by its own online backup while workers write, PostgreSQL by ``pg_dump`` and
``pg_restore``. A restored store gives batches numbers far above those of the backup and of what it
replaces, so cursors of before the restore skip nothing. What devices had sent after the backup is
gone: they have been told that it is stored (``docs/fleet.md``).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import text

from edgekit.errors import StorageError, StoreError, first_line
from ota.store.database import BUSY_S, Store
from ota.store.schema import is_known, version_of

CURSOR_STEP = 2**32
"""How far numbers jump: more than a store is given between a backup and its restore."""
_TABLE = "alembic_version"
_POSTGRES_STEP = text(
    "SELECT setval(pg_get_serial_sequence('batches', 'id'),"
    " (SELECT greatest(last_value, :given) FROM batches_id_seq) + :step)"
)
_POSTGRES_GIVEN = text("SELECT last_value FROM batches_id_seq")
_SQLITE_GIVEN = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'batches'"


def back_up(store: Store, file: Path, *, replace: bool = False) -> None:
    """Copy a store to a file, while it is in use.

    Raises:
        StorageError: The file is there already, or cannot be written.
        StoreError: The store cannot be read, or PostgreSQL's program fails or is not installed.
    """
    if file.exists() and not replace:
        raise StorageError(f"{file} is there already", "Name another file, or give --replace")
    with _beside(file) as new:
        if store.is_sqlite:
            _copy(_path(store), new)
            _make_single(new)
        else:
            options = ["--format=custom", "--no-owner", "--no-privileges", f"--file={new}"]
            _run(store, "pg_dump", options)
        _flush(new)
        new.replace(file)


def restore(store: Store, file: Path, *, replace: bool = False) -> None:
    """Make a store what a backup of it says; workers are to be stopped.

    Raises:
        StorageError: The file is not there.
        StoreError: It is no backup of a store that this release knows, or the store has tables and
            is not to be replaced; nothing was changed.
    """
    if not file.is_file():
        raise StorageError(f"{file} is not there", "Name the file of a backup")
    with store.reading() as connection:
        if version_of(connection) is not None and not replace:
            raise StoreError("the store has tables already", "Give --replace to lose what it has")
    given = _last_given(store)
    if store.is_sqlite:
        _restore_sqlite(store, file, given)
    else:
        options = ["--clean", "--if-exists", "--no-owner", "--single-transaction", str(file)]
        _run(store, "pg_restore", options)
        with store.writing() as connection:
            connection.execute(_POSTGRES_STEP, {"given": given, "step": CURSOR_STEP})


def _last_given(store: Store) -> int:
    """Return the last number that a store gave a batch: a backup may be restored twice."""
    with store.reading() as connection:
        if version_of(connection) is None:
            return 0
        query = text(_SQLITE_GIVEN) if store.is_sqlite else _POSTGRES_GIVEN
        return connection.execute(query).scalar_one() or 0


def _restore_sqlite(store: Store, file: Path, given: int) -> None:
    target = _path(store)
    with _beside(target) as new:
        # Made ready beside the store, so that what takes its place at once is complete.
        _copy(file, new)
        with closing(sqlite3.connect(new)) as connection, connection:
            _check_backup(connection, file)
            [saved] = connection.execute(_SQLITE_GIVEN).fetchone()
            # Of a table that never had a row, SQLite has no sequence.
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'batches'")
            connection.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('batches', ?)",
                (max(saved or 0, given) + CURSOR_STEP,),
            )
        _copy(new, target)


def _check_backup(connection: sqlite3.Connection, file: Path) -> None:
    """Refuse a file that is no backup.

    Raises:
        StoreError: It is none, or is damaged.
    """
    try:
        [state] = connection.execute("PRAGMA quick_check(1)").fetchone()
        rows = connection.execute(f"SELECT version_num FROM {_TABLE}").fetchall()  # noqa: S608
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{file} is no backup of a store: {error}") from error
    if state != "ok":
        raise StoreError(f"{file} is damaged: {state}", "Take an older backup")
    if len(rows) != 1 or not is_known(rows[0][0]):
        raise StoreError(f"{file} is of a newer release", "Update edgekit, or take an older backup")


def _copy(source: Path, target: Path) -> None:
    """Copy a database by SQLite's online backup; the target changes in one transaction.

    Raises:
        StoreError: The source is none, or either is busy for long.
    """
    try:
        with (
            closing(
                sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
            ) as old,
            closing(sqlite3.connect(target, timeout=BUSY_S)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise StoreError(f"{source} cannot be copied to {target}: {error}") from error


def _make_single(file: Path) -> None:
    """End a copy's write-ahead log: readers of it need no files beside it, nor the right to any."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE").close()


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """Return a name beside a file, and see that nothing stays there."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        # Nobody else may read telemetry, nor the dump of it.
        new.touch(mode=0o600)
        yield new
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        for ending in ("", "-wal", "-shm", "-journal"):
            new.with_name(new.name + ending).unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _path(store: Store) -> Path:
    return Path(str(store.url.database))


def _run(store: Store, program: str, options: list[str]) -> None:
    """Run a program of PostgreSQL on a store; the password is in its environment alone.

    Raises:
        StoreError: It is not installed, or fails.
    """
    found = shutil.which(program)
    if found is None:
        raise StoreError(f"{program} is not in the PATH", "Install PostgreSQL's client programs")
    url = store.url.set(drivername="postgresql")
    said = url.query.get("password") if url.password is None else url.password
    password = {} if said is None else {"PGPASSWORD": str(said)}
    # Not URL.set(), which takes a password of None for "as it was".
    bare = url._replace(password=None).difference_update_query(["password"])
    plain = bare.render_as_string(hide_password=False)
    result = subprocess.run(
        [found, f"--dbname={plain}", "--no-password", *options],
        env={**os.environ, **password},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        why = first_line(StoreError(result.stderr))
        raise StoreError(f"{program} failed: {why}", "Use programs of the server's version")
