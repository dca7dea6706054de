"""Opening the store: SQLite by default, PostgreSQL by URL; transactions; errors in our words.

SQLite: write-ahead log, a flush at every commit (what the store acknowledges must outlive a power
cut), one writer at a time, which waits for its turn. PostgreSQL: transactions are READ COMMITTED
and lock the rows of the devices that they write; sessions that hang are ended by the server, so
that a stopped worker does not hold the others up for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from edgekit.errors import ConfigError, StoreAwayError, StoreError, first_line

EXAMPLES = "sqlite:////var/lib/edgekit/store.db or postgresql://user@host/edgekit"
BUSY_S = 10.0
"""How long a writer waits for another one."""
_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "journal_size_limit = 67108864",
    "cache_size = -32768",
)
_POSTGRES = {
    "connect_timeout": 5,
    "application_name": "edgekit-fleet",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c lock_timeout=10s -c idle_in_transaction_session_timeout=30s",
}
_RETRY_STATES = ("08", "25006", "40", "53", "55P03", "57", "58")
"""SQLSTATEs, or their classes, of what passes: connections, a standby's promotion, deadlocks, full
disks, locks, shutdowns, system errors."""


class Store:
    """An open store; give it to the functions of ``ota.store``.

    Args:
        engine: SQLAlchemy's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite."""
        return self._engine.dialect.name == "sqlite"

    @property
    def url(self) -> URL:
        """Where it is; ``str`` of it hides the password."""
        return self._engine.url

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Return a connection in a transaction that reads one state.

        Raises:
            StoreAwayError: The database does not answer.
            StoreError: It refuses.
        """
        with _our_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Return a connection in a transaction, which is committed at the end of the block.

        Raises:
            StoreAwayError: The database does not answer or is busy; nothing was written, or, where
                the connection broke in the commit itself, all of it.
            StoreError: It refuses; nothing was written.
        """
        with _our_errors(), self._engine.connect() as plain:
            connection = plain.execution_options(edgekit_writes=True)
            with connection.begin():
                yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def connect(url: str) -> Store:
    """Return a store, without looking at its tables; :func:`ota.store.schema.open_store` does.

    Raises:
        ConfigError: The URL is none, or of another database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter of a port that is no number
        raise ConfigError("the store's URL cannot be read", f"Write {EXAMPLES}") from error
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ConfigError("a store of SQLite needs a file", f"Write {EXAMPLES}")
        if parsed.query:
            raise ConfigError("a store of SQLite has no options", f"Write {EXAMPLES}")
        return Store(_sqlite(parsed))
    if kind == "postgresql":
        return Store(_postgres(parsed))
    raise ConfigError(f"a store cannot be in {kind!a}", f"Write {EXAMPLES}")


def _sqlite(url: URL) -> Engine:
    url = url.set(drivername="sqlite")
    engine = create_engine(url, connect_args={"timeout": BUSY_S}, pool_size=4)

    def prepare(connection: Any, _: object) -> None:
        # SQLAlchemy's begin is the one that begins: see `begin`.
        connection.isolation_level = None
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()

    def begin(connection: Connection) -> None:
        # A transaction that reads first and then writes cannot wait: another may have written.
        writes = connection.get_execution_options().get("edgekit_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine


def _postgres(url: URL) -> Engine:
    arguments = {name: value for name, value in _POSTGRES.items() if name not in url.query}
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args=arguments,
        pool_size=4,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
    )


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        said = first_line(error.orig or error) if isinstance(error, DBAPIError) else str(error)
        if _may_pass(error):
            raise StoreAwayError(f"the store does not answer: {said}") from error
        raise StoreError(f"the store refuses: {said}") from error


def _may_pass(error: SQLAlchemyError) -> bool:
    """Whether what failed may work later."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError) or isinstance(error, IntegrityError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated or (isinstance(state, str) and state.startswith(_RETRY_STATES)):
        return True
    # Without a state it is the driver that speaks: of connections, and all of SQLite's troubles.
    return state is None and isinstance(error, (OperationalError, InterfaceError))


def lock_tables(connection: Connection) -> None:
    """Let no other migration run until the transaction ends; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7306571, 1)"))


def lock_cursor(connection: Connection) -> None:
    """Hold the numbers of batches until the transaction ends: they appear in their order."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7306571, 2)"))
