"""The residual streams of a calibration after its last finished layer, kept in the work folder.

One file: a line of canonical JSON (key, layers done, shape), the streams in float32 as they are,
and the sha256 of all that. A file that is torn, or of another key, counts as none; so it need not
be synced. It is replaced after every layer, when old and new stand side by side for a moment, and
removed with the calibration's end. Guidance
(:mod:`edgekit.pipeline.guiding`) is kept in a file of this form, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.bundle.storage import storage_errors
from edgekit.contracts.canonical import canonical_bytes

Streams = Sequence[npt.NDArray[np.float32]]
NAME = ".streams"
FILES_AT_ONCE = 2
"""While the file is replaced."""
MAX_HEADER_BYTES = 4096
_CHUNK_BYTES = 1 << 24


class StreamFile:
    """The kept streams of one calibration, or its guidance.

    Args:
        folder: The work folder.
        key: Digest of all that decides the streams' bytes.
        name: Of the file.
    """

    def __init__(self, folder: Path, key: str, name: str = NAME) -> None:
        self._path = folder / name
        self._temporary = folder / f"{name}.new"
        self._key = key

    def save(self, layers: int, streams: Streams) -> None:
        """Replace the file by ``streams``, of one shape, as they are after ``layers`` layers.

        Raises:
            StorageError: It cannot be written.
        """
        shape = [len(streams), *streams[0].shape]
        header = canonical_bytes({"key": self._key, "layers": layers, "shape": shape}) + b"\n"
        digest = hashlib.sha256(header)
        with storage_errors(self._path, sum(stream.nbytes for stream in streams)):
            try:
                with self._temporary.open("wb") as file:
                    file.write(header)
                    for stream in streams:
                        view = np.ascontiguousarray(stream).reshape(-1).view(np.uint8).data
                        for start in range(0, len(view), _CHUNK_BYTES):
                            chunk = view[start : start + _CHUNK_BYTES]
                            digest.update(chunk)
                            file.write(chunk)
                    file.write(digest.digest())
                self._temporary.replace(self._path)
            except BaseException:
                self._temporary.unlink(missing_ok=True)
                raise

    def load(self) -> tuple[int, list[npt.NDArray[np.float32]]] | None:
        """Return the layers done and the streams after them; None if there are no whole ones.

        Raises:
            StorageError: The file system fails.
        """
        with storage_errors(self._path):
            if not self._path.is_file():
                return None
            with self._path.open("rb") as file:
                line = file.readline(MAX_HEADER_BYTES)
                try:
                    header = json.loads(line)
                except ValueError:  # torn
                    return None
                if not isinstance(header, dict) or header.get("key") != self._key:
                    return None
                shape = header["shape"]
                digest = hashlib.sha256(line)
                size = 4 * int(np.prod(shape, dtype=np.int64))
                if self._path.stat().st_size != len(line) + size + digest.digest_size:
                    return None
                values = np.empty(shape, np.float32)
                view = values.reshape(-1).view(np.uint8).data
                for start in range(0, size, _CHUNK_BYTES):
                    chunk = view[start : start + _CHUNK_BYTES]
                    file.readinto(chunk)
                    digest.update(chunk)
                whole = file.read() == digest.digest()
        return (header["layers"], list(values)) if whole else None

    def remove(self) -> None:
        """Remove what is kept."""
        with storage_errors(self._path):
            for path in (self._path, self._temporary):
                path.unlink(missing_ok=True)
