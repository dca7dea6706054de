"""The cloud's side: ingest of telemetry and its store; never installed on a device."""
