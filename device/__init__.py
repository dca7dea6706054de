"""The on-device agent. Serving, telemetry and updates land here."""
