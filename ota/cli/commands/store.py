"""``edgekit-fleet store``: migrate, status, prune, backup, restore."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import click

from edgekit.cli.render import console, facts_table, print_json
from ota.cli.options import json_option, moment, store_option
from ota.store.backup import back_up
from ota.store.backup import restore as restore_backup
from ota.store.database import connect
from ota.store.retention import Retention
from ota.store.retention import prune as prune_store
from ota.store.schema import migrate as migrate_store
from ota.store.schema import open_store
from ota.store.status import status as status_of

_KEPT = Retention()
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def command() -> None:
    """Make, look after, back up and restore the store."""


@command.command()
@store_option
@json_option
def migrate(*, url: str, as_json: bool) -> None:
    """Make the tables, or bring them to this release; stop older workers first."""
    with closing(connect(url)) as store:
        before, after = migrate_store(store)
    if as_json:
        print_json({"version_before": before, "version": after})
    elif before == after:
        console().print(f"the store is of version {after} already")
    else:
        console().print(f"the store is now of version {after}")


@command.command()
@store_option
@json_option
def status(*, url: str, as_json: bool) -> None:
    """Show what the store holds."""
    with closing(open_store(url)) as store:
        facts = status_of(store)
    if as_json:
        print_json(facts)
        return
    rows = [
        (name, moment(value) if name.endswith("_ms") and isinstance(value, int) else str(value))
        for name, value in facts.items()
    ]
    console().print(facts_table("store", rows))


@command.command()
@store_option
@json_option
@click.option("--batches-days", type=float, default=_KEPT.batches, show_default=True)
@click.option("--alarms-days", type=float, default=_KEPT.alarms, show_default=True)
@click.option("--rejects-days", type=float, default=_KEPT.rejects, show_default=True)
@click.option("--boots-days", type=float, default=_KEPT.boots, show_default=True)
def prune(
    *,
    url: str,
    as_json: bool,
    batches_days: float,
    alarms_days: float,
    rejects_days: float,
    boots_days: float,
) -> None:
    """Delete what was received longer ago; workers may run."""
    kept = Retention(
        batches=batches_days, alarms=alarms_days, rejects=rejects_days, boots=boots_days
    )
    with closing(open_store(url)) as store:
        deleted = prune_store(store, kept, time.time_ns() // 1_000_000)
    if as_json:
        print_json({"deleted": deleted})
        return
    console().print(facts_table("deleted", [(name, str(rows)) for name, rows in deleted.items()]))


@command.command()
@store_option
@click.option("--replace", is_flag=True, help="Replace FILE if it is there.")
@click.argument("file", type=_FILE)
def backup(*, url: str, file: Path, replace: bool) -> None:
    """Copy the store to FILE; workers may run. PostgreSQL needs pg_dump in the PATH."""
    with closing(open_store(url)) as store:
        back_up(store, file, replace=replace)
    console().print(f"{file} has {file.stat().st_size} bytes")


@command.command()
@store_option
@click.option("--replace", is_flag=True, help="Lose what the store has.")
@click.argument("file", type=_FILE)
def restore(*, url: str, file: Path, replace: bool) -> None:
    """Make the store what FILE has; stop workers first. PostgreSQL needs pg_restore."""
    with closing(connect(url)) as store:
        restore_backup(store, file, replace=replace)
    console().print("restored")
