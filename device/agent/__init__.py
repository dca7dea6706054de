"""The agent: one process that serves whatever model the device has, and changes it."""
