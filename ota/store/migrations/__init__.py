"""Migrations of the store, run by alembic; one file a version, never changed once released."""
