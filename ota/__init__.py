"""The fleet side: repository, campaigns and ingest land here."""
