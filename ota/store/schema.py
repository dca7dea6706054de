"""The store's version: migrations to the newest, and the refusal of any other."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from edgekit.errors import StoreError
from ota.store.database import Store, connect, lock_tables

_FOLDER = Path(__file__).parent / "migrations"
_MIGRATE = "Run: edgekit-fleet store migrate"


def open_store(url: str) -> Store:
    """Open a store that has this release's tables.

    Args:
        url: ``sqlite:///`` and a path, or ``postgresql://``.

    Raises:
        ConfigError: The URL is none of these.
        StoreError: The store does not answer, or its tables are of another version.
    """
    store = connect(url)
    if store.is_sqlite and not Path(str(store.url.database)).exists():
        # SQLite would make an empty one.
        raise StoreError(f"the store {store.url.database} is not there", _MIGRATE)
    try:
        with store.reading() as connection:
            _check(version_of(connection))
    except BaseException:
        store.close()
        raise
    return store


def migrate(store: Store) -> tuple[str | None, str]:
    """Bring a store's tables to this release; one that is there already is left alone.

    Returns:
        Version before, None for an empty store, and after.

    Raises:
        StoreError: The store is of a newer release, or refuses; nothing was changed.
    """
    with store.writing() as connection:
        lock_tables(connection)
        before = version_of(connection)
        if before is not None and not is_known(before):
            _check(before)
        config = schema_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return before, newest()


def newest() -> str:
    """Return the version that this release reads and writes."""
    return _known()[0]


def version_of(connection: Connection) -> str | None:
    """Return the version of a store's tables; None for one without."""
    return MigrationContext.configure(connection).get_current_revision()


def is_known(version: str) -> bool:
    """Whether this release can read or migrate a version."""
    return version in _known()


def _check(version: str | None) -> None:
    """Refuse another version than this release's.

    Raises:
        StoreError: Says which it is, and what to do.
    """
    if version == newest():
        return
    if version is None or is_known(version):
        found = "has no tables yet" if version is None else f"is of the older version {version}"
        raise StoreError(f"the store {found}", _MIGRATE)
    raise StoreError(
        f"the store is of version {version}, which this release ({newest()}) does not know",
        "Update edgekit, or restore a backup of before the migration",
    )


def _known() -> list[str]:
    """Return all versions, the newest first."""
    return [
        script.revision for script in ScriptDirectory.from_config(schema_config()).walk_revisions()
    ]


def schema_config() -> Config:
    """Return alembic's configuration; its attribute ``connection`` is to be set."""
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
