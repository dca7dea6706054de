"""Looking after the store: migrations, versions, retention, backups."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fleet_cases import BOOT, DEVICE, alarm, arrived, batch_payload, health, stored_samples
from postgres_server import Postgres
from sqlalchemy import Connection, text

from edgekit.errors import ConfigError, StorageError, StoreAwayError, StoreError
from ota.ingest.messages import read_message
from ota.store.backup import CURSOR_STEP, back_up, restore
from ota.store.commit import Writer
from ota.store.database import Store, connect
from ota.store.items import NewAlarm, NewBatch, NewHealth, Reject
from ota.store.read import active_alarms, alarms_of, batches_after, devices, last_cursor
from ota.store.retention import DAY_MS, Retention, prune
from ota.store.schema import migrate, newest, open_store, schema_config, version_of
from ota.store.tables import Base


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with closing(connect(store_url)) as opened:
        migrate(opened)
        yield opened


@pytest.fixture(autouse=True)
def postgres_programs(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "postgresql" in request.node.name:
        server: Postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("PATH", f"{server.folder}:{os.environ['PATH']}")


def batch(first: int, last: int, received_ms: int, boot: str = BOOT) -> NewBatch:
    item = read_message(arrived("m/batch", batch_payload(range(first, last + 1), boot)))
    assert isinstance(item, NewBatch)
    return replace(item, received_ms=received_ms)


def test_migrations_make_what_the_models_say(store: Store) -> None:
    """From an empty database to the tables that the code uses, and once more changes nothing."""
    with store.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert version_of(connection) == newest()
    assert migrate(store) == (newest(), newest())


def put_first_tables(store: Store, rows: int) -> None:
    """Make the tables of version 0001, with devices, a batch and an alarm in them."""
    with store.writing() as connection:
        migrate_to("0001", connection)
        for number in range(1, rows + 1):
            connection.execute(
                text(
                    "INSERT INTO devices"
                    " (tenant, device, first_received_ms, last_received_ms, state, details)"
                    " VALUES ('acme', :name, 1, 2, :state, :d)"
                ),
                {"name": f"orin-{number}", "state": "down", "d": '{"site":"hall-7"}'},
            )
        connection.execute(
            text(
                "INSERT INTO batches (device_id, boot, clock, seq, samples, first_ms, last_ms,"
                " received_ms, encoding, payload)"
                " VALUES (1, 'b', 'synced', '[[1,1]]', 1, 1, 1, 1, 'json', :payload)"
            ),
            {"payload": b"{}"},
        )


def migrate_to(version: str, connection: Connection) -> None:
    config = schema_config()
    config.attributes["connection"] = connection
    command.upgrade(config, version)


def test_the_first_tables_are_brought_to_this_release(store_url: str, tmp_path: Path) -> None:
    """Every row stays; nobody knows yet why a device is down, and the next message says it."""
    with closing(connect(store_url)) as plain:
        put_first_tables(plain, rows=3)
        with pytest.raises(StoreError, match=r"older version 0001.*store migrate"):
            open_store(store_url)
        back_up(plain, tmp_path / "saved")
        assert migrate(plain) == ("0001", newest())
    with closing(open_store(store_url)) as store:
        assert [(one.device, one.state, one.down_reason) for one in devices(store)] == [
            (f"orin-{number}", "down", None) for number in (1, 2, 3)
        ]
        assert devices(store)[0].details == {"site": "hall-7"}
        assert [one.cursor for one in batches_after(store, 0, 9)] == [1]
        writer = Writer(store)
        stopped = health("down", details={"reason": "stopped"})
        writer.commit([NewHealth(device=DEVICE, received_ms=9, health=health())])
        writer.commit([NewHealth(device=DEVICE, received_ms=9, health=stopped)])
        assert devices(store)[0].down_reason == "stopped"
        back_up(store, tmp_path / "new")
        writer.commit([NewHealth(device=DEVICE, received_ms=9, health=health(connection=2))])
        restore(store, tmp_path / "new", replace=True)
        assert devices(store)[0].down_reason == "stopped"
        # A backup of before the migration comes back as it was, and is migrated again.
        restore(store, tmp_path / "saved", replace=True)
        assert migrate(store) == ("0001", newest())
        assert [one.down_reason for one in devices(store)] == [None] * 3


def test_other_versions_are_refused(store_url: str) -> None:
    """A worker does not start on tables that it does not know, and says what to do."""
    with closing(connect(store_url)) as plain:
        with plain.writing():
            pass
        with pytest.raises(StoreError, match=r"no tables yet.*store migrate"):
            open_store(store_url)
        migrate(plain)
        with plain.writing() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreError, match=r"version 9999.*does not know.*Update edgekit"):
            open_store(store_url)
        with pytest.raises(StoreError, match="does not know"):
            migrate(plain)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "cannot be read"),
        ("sqlite://", "needs a file"),
        ("mysql://host/x", "cannot be in 'mysql'"),
        ("postgresql://host:port/x", "cannot be read"),
        ("sqlite:////tmp/store.db?timeout=long", "has no options"),
    ],
)
def test_urls_of_no_store_are_refused(url: str, said: str) -> None:
    """The error shows what a URL looks like."""
    with pytest.raises(ConfigError, match=f"{said}.*sqlite:////var"):
        connect(url)


def test_another_driver_of_a_database_is_not_looked_for(tmp_path: Path) -> None:
    """Other programs' URLs name theirs; the database is what counts."""
    with closing(connect(f"sqlite+aiosqlite:///{tmp_path}/store.db")) as store:
        assert migrate(store) == (None, newest())


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Only ``migrate`` makes a file; a server that does not answer may do so later."""
    with pytest.raises(StoreError, match=r"is not there.*migrate"):
        open_store(f"sqlite:///{tmp_path}/no.db")
    assert not (tmp_path / "no.db").exists()
    with pytest.raises(StoreAwayError, match="does not answer"):
        open_store("postgresql://edgekit@127.0.0.1:1/none")


def test_what_is_old_is_pruned_by_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages count from reception; what was stored stays known, and is not stored again."""
    monkeypatch.setattr("ota.store.retention.CHUNK_ROWS", 2)
    writer, day = Writer(store), DAY_MS
    writer.commit([NewHealth(device=DEVICE, received_ms=0, health=health())])
    writer.commit([batch(n, n, n * day) for n in range(1, 8)])
    writer.commit([batch(1, 1, 0, "gone")], [Reject("x", 1, "topic", "", b"")])
    deleted = prune(store, Retention(batches=3, boots=30), 7 * day)
    assert deleted == {"batches": 4, "alarms": 0, "rejects": 0, "boots": 0}
    assert [one.received_ms // day for one in batches_after(store, 0, 10)] == [4, 5, 6, 7]
    assert writer.commit([batch(1, 2, 8 * day)]).samples == 0
    deleted = prune(store, Retention(), 500 * day)
    assert deleted == {"batches": 4, "alarms": 0, "rejects": 1, "boots": 1}
    assert writer.commit([batch(3, 7, 500 * day)]).samples == 0
    newest_before = last_cursor(store)
    writer.commit([batch(100, 101, 500 * day)])
    assert last_cursor(store) > max(newest_before, 8)


def test_an_alarm_that_is_raised_is_not_pruned(store: Store) -> None:
    """However old it is, what holds now is kept with its value."""
    writer = Writer(store)
    writer.commit([NewHealth(device=DEVICE, received_ms=0, health=health())])
    for seq, state in ((1, "raised"), (2, "cleared"), (3, "raised")):
        writer.commit([NewAlarm(device=DEVICE, received_ms=seq, alarm=alarm(seq, state))])
    assert prune(store, Retention(), 500 * DAY_MS)["alarms"] == 2
    [raised] = active_alarms(store)
    assert raised.seq == 3
    assert len(alarms_of(store, "acme", "orin-1")) == 1


def test_a_boot_that_goes_on_while_it_is_pruned_stays_whole(store: Store) -> None:
    """Its numbers and its alarms both stay if a worker has a message of it at that moment."""
    Writer(store).commit([NewAlarm(device=DEVICE, received_ms=1, alarm=alarm(1))])
    deleted: list[dict[str, int]] = []
    pruning = threading.Thread(
        target=lambda: deleted.append(prune(store, Retention(), 500 * DAY_MS))
    )
    with store.writing() as worker:
        worker.execute(text("UPDATE devices SET last_received_ms = last_received_ms"))
        worker.execute(text("UPDATE boots SET last_received_ms = :now"), {"now": 500 * DAY_MS})
        pruning.start()
        pruning.join(0.5)
    pruning.join()
    assert [tables["boots"] for tables in deleted] == [0]
    with store.reading() as connection:
        kept = "SELECT (SELECT count(*) FROM boots), (SELECT count(*) FROM alarm_states)"
        assert tuple(connection.execute(text(kept)).one()) == (1, 1)


def test_boots_are_kept_longer_than_devices_keep_rows() -> None:
    """Forgetting numbers that a device may still send would store rows twice."""
    with pytest.raises(ConfigError, match="boots for 30"):
        Retention(boots=20)


@pytest.mark.parametrize("days", [float("nan"), float("inf"), 1e30, -1])
@pytest.mark.parametrize("table", ["batches", "alarms", "rejects", "boots"])
def test_days_that_are_no_age_are_refused(table: str, days: float) -> None:
    """Options are numbers that a shell's arithmetic made, or did not."""
    with pytest.raises(ConfigError, match="0 to 36500 days"):
        Retention(**{table: days})


def test_a_backup_of_a_store_in_use_comes_back(store: Store, tmp_path: Path) -> None:
    """Everything is as it was at the backup, and no cursor of before skips what comes after."""
    writer = Writer(store)
    writer.commit([batch(1, 30, 1), NewAlarm(device=DEVICE, received_ms=1, alarm=alarm(31))])
    saved = tmp_path / "saved"
    back_up(store, saved)
    writer.commit([batch(32, 60, 2)])
    lost = last_cursor(store)
    with pytest.raises(StoreError, match="has tables already"):
        restore(store, saved)
    restore(store, saved, replace=True)
    assert sorted(seq for _, _, seq in stored_samples(store)) == list(range(1, 31))
    assert len(active_alarms(store)) == 1
    # The device still has what it was not told of; the writer's memory of rows is still right.
    assert writer.commit([batch(25, 40, 3)]).samples == 9
    [new] = batches_after(store, lost, 10)
    assert new.cursor > CURSOR_STEP
    assert oct(saved.stat().st_mode)[-3:] == "600"


def test_no_cursor_skips_what_comes_after_a_restore(store: Store, tmp_path: Path) -> None:
    """Neither of a backup without a batch, nor of one that is restored for a second time."""
    back_up(store, tmp_path / "saved")
    for first in (1, 11, 21):
        Writer(store).commit([batch(first, first + 9, 1), batch(first + 100, first + 109, 1)])
        cursor = last_cursor(store)
        restore(store, tmp_path / "saved", replace=True)
        Writer(store).commit([batch(1, 5, 2)])
        assert len(batches_after(store, cursor, 10)) == 1


def test_a_backup_makes_a_new_store(store: Store, tmp_path: Path, postgres: Postgres) -> None:
    """On another machine it is restored into an empty database."""
    Writer(store).commit([batch(1, 30, 1)])
    back_up(store, tmp_path / "saved")
    url = f"sqlite:///{tmp_path}/new.db" if store.is_sqlite else postgres.database()
    with closing(connect(url)) as empty:
        restore(empty, tmp_path / "saved")
    with closing(open_store(url)) as opened:
        assert len(stored_samples(opened)) == 30


@pytest.mark.parametrize("name", ["a b", "100%.db", "a%20b", "what?mode=rw", "#1"])
def test_files_may_have_any_name(name: str, tmp_path: Path) -> None:
    """Marks that mean something in a URL do not; a backup is one file, before and after its use."""
    saved = tmp_path / name
    with closing(connect(f"sqlite:///{tmp_path}/store")) as store:
        migrate(store)
        Writer(store).commit([batch(1, 30, 1)])
        back_up(store, saved)
        restore(store, saved, replace=True)
        assert len(stored_samples(store)) == 30
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "store"])


def test_a_backup_replaces_nothing_unasked(store: Store, tmp_path: Path) -> None:
    """A file that is there stays, unless it is to be replaced; nothing else is left behind."""
    saved = tmp_path / "saved"
    saved.write_text("mine")
    with pytest.raises(StorageError, match="there already"):
        back_up(store, saved)
    assert saved.read_text() == "mine"
    back_up(store, saved, replace=True)
    assert saved.stat().st_size > 1000
    assert not list(tmp_path.glob(".saved*"))


def test_files_that_are_no_backup_change_nothing(store: Store, tmp_path: Path) -> None:
    """Another database, another program's file, and none at all are refused; the store stays."""
    Writer(store).commit([batch(1, 5, 1)])
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    words = tmp_path / "words"
    words.write_text("no database")
    for file in (other, words):
        with pytest.raises(StoreError):
            restore(store, file, replace=True)
    with pytest.raises(StorageError, match="is not there"):
        restore(store, tmp_path / "none", replace=True)
    assert len(stored_samples(store)) == 5


def test_postgres_programs_that_are_missing_are_named(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with closing(connect(postgres.database())) as store:
        migrate(store)
        with pytest.raises(StoreError, match=r"pg_dump is not in the PATH\. Install"):
            back_up(store, tmp_path / "saved")


@pytest.mark.parametrize("form", ["{0}:hush@{1}", "{0}@{1}?password=hush"])
@pytest.mark.parametrize("program", ["pg_dump", "pg_restore"])
def test_a_password_is_on_no_command_line(
    program: str, form: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everyone on a machine may read programs' arguments; their owner alone the environment."""
    told = tmp_path / "told"
    fake = tmp_path / program
    fake.write_text(f'#!/bin/sh\necho "$@ env=$PGPASSWORD" >> {told}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = form.format(*postgres.database().split("@"))
    (tmp_path / "file").write_text("a backup")
    with closing(connect(url)) as store:
        migrate(store)
        if program == "pg_dump":
            back_up(store, tmp_path / "saved")
        else:
            restore(store, tmp_path / "file", replace=True)
    arguments, _, environment = told.read_text().partition(" env=")
    assert "hush" not in arguments
    assert environment == "hush\n"
