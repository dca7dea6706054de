"""Streams kept between layers: the newest, to the bit, and never a torn or foreign file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import StorageError
from edgekit.pipeline.kept_streams import NAME, StreamFile


def streams(seed: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, 5, 8)).astype(np.float32) for _ in range(2)]


def test_the_newest_come_back_to_the_bit(tmp_path: Path) -> None:
    """Only the last layer's streams are kept, and they can be changed in place."""
    kept = StreamFile(tmp_path, "key")
    assert kept.load() is None
    kept.save(1, streams(1))
    kept.save(2, streams(2))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    found = StreamFile(tmp_path, "key").load()
    assert found is not None
    layers, arrays = found
    assert layers == 2
    for got, want in zip(arrays, streams(2), strict=True):
        assert got.tobytes() == want.tobytes()
        assert got.flags.writeable
    kept.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "cut header", "bent", "longer", "empty"])
def test_a_torn_file_counts_as_none(tmp_path: Path, damage: str) -> None:
    """Whatever a crash leaves, it is not taken for streams."""
    kept = StreamFile(tmp_path, "key")
    kept.save(1, streams(1))
    data = bytearray((tmp_path / NAME).read_bytes())
    bent = data.copy()
    bent[-100] ^= 1
    left: dict[str, bytes | bytearray] = {
        "cut": data[:-7],
        "cut header": data[:30],
        "bent": bent,
        "longer": data + b"x",
        "empty": b"",
    }
    (tmp_path / NAME).write_bytes(left[damage])
    assert kept.load() is None


def test_another_build_is_not_taken_up(tmp_path: Path) -> None:
    """Streams of other data, another recipe or another device have another key."""
    StreamFile(tmp_path, "key").save(1, streams(1))
    assert StreamFile(tmp_path, "other").load() is None


def test_a_full_disk_keeps_the_older_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails names the remedy, leaves what was kept, and frees what it took."""
    kept = StreamFile(tmp_path, "key")
    kept.save(1, streams(1))

    second = iter([False, True])

    def full_disk(stream: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if next(second):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return stream

    monkeypatch.setattr(np, "ascontiguousarray", full_disk)
    with pytest.raises(StorageError, match="takes up where"):
        kept.save(2, streams(2))
    found = kept.load()
    assert found is not None
    assert found[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
