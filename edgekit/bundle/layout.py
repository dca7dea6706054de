"""Where things stand inside a bundle folder."""

from __future__ import annotations

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
"""Holds the manifest's digest in hex: a flipped bit in the manifest is caught by it."""
GOLDEN = "golden.json"
TOKENIZER_FOLDER = "tokenizer"
BLOB_FOLDER = "blobs"


def blob_location(sha256: str) -> str:
    """Return a blob's path relative to the bundle, which is also its external-data location.

    Graphs stand above their blobs: ONNX refuses external data outside the graph's folder, and
    refuses symbolic and hard links.
    """
    return f"{BLOB_FOLDER}/{sha256[:2]}/{sha256}"
