"""The versions: alembic finds the files by itself."""
