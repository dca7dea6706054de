"""Graphs made by other exporters: for families that edgekit has no graph of its own for."""
