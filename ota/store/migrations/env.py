"""What alembic runs: migrations in the transaction of whoever called ``ota.store.schema``."""

from __future__ import annotations

from alembic import context

from ota.store.tables import Base

connection = context.config.attributes["connection"]
# SQLite alters little: alembic then copies the table.
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
