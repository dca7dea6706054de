"""The device's MQTT v5 side: session, publisher, notices and their policy (ADR 18)."""
