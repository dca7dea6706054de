"""Bundles on disk: writing them reproducibly, reading, verifying and comparing them."""
