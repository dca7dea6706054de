"""Where things stand inside a bundle folder."""

from __future__ import annotations

from edgekit.contracts.manifest import FileEntry, Manifest

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


def listed_files(manifest: Manifest) -> dict[str, FileEntry]:
    """Return every file and blob that a manifest lists, by its path in the bundle."""
    listed = {entry.path: entry for entry in manifest.files}
    for tensor in manifest.tensors:
        location = blob_location(tensor.sha256)
        listed[location] = FileEntry(location, tensor.size_bytes, tensor.sha256)
    return listed
