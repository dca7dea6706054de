"""Made-up devices that run the agent's telemetry, hundreds in a process (``docs/fleet.md``)."""
