"""Runs a bundle's engine for many requests at once."""
