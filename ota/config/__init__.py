"""Signed configurations and commands: written, kept, handed to devices."""
