"""Ingest: stateless workers between the broker and the store."""
