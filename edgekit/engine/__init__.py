"""Inference: one session protocol, its engines, sampling and generation."""
