"""The on-device agent: `python -m device`. Telemetry and updates land here."""
