"""Hybrid routing: what may go to a cloud endpoint, when, and at which price in bytes."""
