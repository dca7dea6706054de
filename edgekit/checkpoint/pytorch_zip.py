"""PyTorch's own checkpoint files (``pytorch_model*.bin``), read without PyTorch or unpickling.

Since PyTorch 1.6 ``torch.save`` writes a ZIP archive: ``<name>/data.pkl``, a pickled dictionary of
tensors, and one uncompressed entry ``<name>/data/<key>`` for the bytes of each storage
(``torch/serialization.py``, ``caffe2/serialize/inline_container.h``). The pickle is only looked at
(``pytorch_pickle.py``); the bytes are mapped where they stand, like those of safetensors. The older
format, a chain of pickles, is refused.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path

import numpy as np

from edgekit.checkpoint.files import read_errors
from edgekit.checkpoint.pytorch_pickle import MAX_PICKLE_BYTES, Storage, View, read_views
from edgekit.checkpoint.safetensors import DTYPES, MAX_TENSORS, StoredTensor
from edgekit.errors import CheckpointError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and extra field
_ENCRYPTED = 0x1
_CONVERT = (
    "Convert the checkpoint once, where you trust it: transformers' AutoModelForCausalLM"
    ".from_pretrained(...).save_pretrained(...) writes safetensors"
)
_DAMAGED = "The checkpoint is damaged: download it again"


def read_pytorch(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a PyTorch checkpoint file by name.

    Raises:
        CheckpointError: Not an archive of ``torch.save``, damaged, or its pickle holds anything
            but a dictionary of contiguous tensors.
    """
    with read_errors(path):
        _check_signature(path)
        try:
            with zipfile.ZipFile(path) as archive:
                return _read(path, archive)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path.name} is a damaged archive: {error}", _DAMAGED) from error


def _check_signature(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        return
    if start.startswith(b"\x80"):
        raise CheckpointError(
            f"{path.name} is in PyTorch's format from before 1.6, which is one long pickle and not "
            "read: unpickling executes code",
            _CONVERT,
        )
    raise CheckpointError(f"{path.name} is not a PyTorch checkpoint", _DAMAGED)


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    entries = _entries(path, archive)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path.name} is an archive without data.pkl", _CONVERT)
    root = pickles[0].removesuffix("data.pkl")
    byte_order = entries.get(f"{root}byteorder")
    if byte_order is not None and _small(path, archive, byte_order) != b"little":
        raise CheckpointError(f"{path.name} was written in another byte order", _CONVERT)
    try:
        views = read_views(_small(path, archive, entries[pickles[0]]))
    except ValueError as error:
        raise CheckpointError(f"{path.name}: data.pkl is refused: {error}", _CONVERT) from error
    if len(views) > MAX_TENSORS:
        raise CheckpointError(f"{path.name} holds {len(views)} tensors, at most {MAX_TENSORS}")
    places = {
        view.storage: _place(path, archive, entries.get(f"{root}data/{view.storage.key}"), view)
        for view in views.values()
    }
    tensors = {
        name: _stored(path, name, view, places[view.storage]) for name, view in views.items()
    }
    _check_overlap(path, views, places)
    return tensors


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise CheckpointError(f"{path.name} holds two entries of one name", _DAMAGED)
    return entries


def _small(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of an entry that is read whole."""
    if entry.file_size > MAX_PICKLE_BYTES or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(
            f"{path.name}: {entry.filename} is compressed or larger than {MAX_PICKLE_BYTES} bytes",
            _CONVERT,
        )
    return archive.read(entry)


def _place(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo | None, view: View) -> int:
    """Return where in the file a storage's bytes begin, after checking that they are all there."""
    storage = view.storage
    size = storage.elements * np.dtype(DTYPES[storage.dtype]).itemsize
    if entry is None:
        raise CheckpointError(f"{path.name} lacks the storage {storage.key!r:.40}", _DAMAGED)
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise CheckpointError(f"{path.name}: {entry.filename} is compressed", _CONVERT)
    if entry.file_size != size or entry.compress_size != size:
        raise CheckpointError(
            f"{path.name}: {entry.filename} has {entry.file_size} bytes, its {storage.elements} "
            f"elements of {storage.dtype} take {size}",
            _DAMAGED,
        )
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path.name}: {entry.filename} has no header", _DAMAGED)
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    start: int = entry.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if start + size > archive.start_dir:
        raise CheckpointError(f"{path.name}: {entry.filename} reaches past its archive", _DAMAGED)
    return start


def _stored(path: Path, name: str, view: View, start: int) -> StoredTensor:
    storage, count = view.storage, math.prod(view.shape)
    if view.offset + count > storage.elements:
        raise CheckpointError(
            f"{path.name}: {name} takes elements {view.offset} to {view.offset + count} of a "
            f"storage of {storage.elements}",
            _DAMAGED,
        )
    item = np.dtype(DTYPES[storage.dtype]).itemsize
    offset = start + view.offset * item
    if offset % item:
        raise CheckpointError(f"{path.name}: {name} begins at byte {offset}, unaligned", _CONVERT)
    return StoredTensor(name, storage.dtype, view.shape, path, offset, count * item)


def _check_overlap(path: Path, views: dict[str, View], places: dict[Storage, int]) -> None:
    """Refuse bytes that belong to two tensors; only two names of one whole tensor are let be.

    A tied head and its embedding are saved as such.
    """
    spans = set()
    for view in views.values():
        item = np.dtype(DTYPES[view.storage.dtype]).itemsize
        start = places[view.storage] + view.offset * item
        spans.add((start, start + math.prod(view.shape) * item, view.storage.dtype, view.shape))
    end = 0
    for start, stop, _, _ in sorted(spans):
        if start < end and stop > start:
            raise CheckpointError(
                f"{path.name}: two of its tensors overlap at byte {start}", _DAMAGED
            )
        end = max(end, stop)
