"""The store of telemetry: SQLite or PostgreSQL, written by ingest workers, read by exporters."""
