"""The safetensors reader: what it reads equals the library's, and no header is believed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.checkpoint.safetensors import MAX_HEADER_BYTES, read_header
from edgekit.errors import CheckpointError


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with this header, truthful or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    """Names, shapes and bytes are those of the reference implementation."""
    from safetensors import numpy as numpy_io

    rng = np.random.default_rng(0)
    wanted: dict[str, np.ndarray[Any, Any]] = {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal((4,)).astype(np.float16),
        "i32": rng.integers(-9, 9, (2, 2, 2)).astype(np.int32),
        "u8": rng.integers(0, 255, (7,)).astype(np.uint8),
        "scalar": np.array(3, np.int64),
    }
    numpy_io.save_file(wanted, tmp_path / "x.safetensors", metadata={"format": "np"})
    header = read_header(tmp_path / "x.safetensors")
    assert set(header) == set(wanted)
    for name, tensor in header.items():
        np.testing.assert_array_equal(tensor.mapped(), wanted[name])
        assert tensor.size_bytes == wanted[name].nbytes


def test_the_library_reads_what_the_tests_write(tmp_path: Path) -> None:
    """The factory's files are genuine, so tests built on them mean something."""
    from safetensors import numpy as numpy_io

    floats, integers = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.int8)
    tensors: dict[str, np.ndarray[Any, Any]] = {"a": floats, "b": integers}
    write_safetensors(tmp_path / "x.safetensors", tensors, "f32")
    found = numpy_io.load_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found["a"], tensors["a"])
    np.testing.assert_array_equal(found["b"], tensors["b"])


def test_mapped_tensors_cannot_be_written(tmp_path: Path) -> None:
    """A checkpoint is never changed by reading it."""
    write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(4, np.float32)}, "f32")
    with pytest.raises(ValueError, match="read-only"):
        read_header(tmp_path / "x.safetensors")["a"].mapped()[0] = 2


LIES: list[tuple[Any, bytes, str]] = [
    ({"a": entry(shape=(3,))}, bytes(8), "the header lies about a: F32 [3] takes 12 bytes"),
    ({"a": entry(offsets=(0, 4))}, bytes(8), "its offsets span 4"),
    ({"a": entry(offsets=(8, 0))}, bytes(8), "the header lies about a"),
    ({"a": entry(offsets=(-8, 0))}, bytes(8), "a has shape [2], offsets [-8, 0]"),
    ({"a": entry(shape=(-1, -2))}, bytes(8), "a has shape [-1, -2]"),
    ({"a": entry(shape=(True, 2))}, bytes(8), "a has shape [True, 2]"),
    ({"a": entry(shape=(2.0,))}, bytes(8), "a has shape [2.0]"),
    ({"a": entry(shape=(1,) * 9)}, bytes(8), "a has shape"),
    ({"a": {**entry(), "shape": "2"}}, bytes(8), "a has shape '2'"),
    ({"a": entry("F64", (1,))}, bytes(8), "a has dtype 'F64', which edgekit does not read"),
    ({"a": {**entry(), "dtype": ["F32"]}}, bytes(8), "a has dtype ['F32'], which edgekit does"),
    ({"a": {**entry(), "dtype": {}}}, bytes(8), "a has dtype {}, which edgekit does not read"),
    ({"a": {"dtype": "F32"}}, bytes(8), "the entry of a lacks dtype, shape or data_offsets"),
    ({"a": 7}, bytes(8), "the entry of a lacks dtype, shape or data_offsets"),
    ({"a": entry()}, bytes(4), "ends at byte"),
    ({"a": entry()}, bytes(12), "has 4 bytes that no tensor of its header covers"),
    ({"a": entry(), "b": entry()}, bytes(8), "overlap another tensor's or leave a gap"),
    ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "leave a gap"),
    (b"[1]", b"", "the header of x.safetensors is not an object of tensors"),
    (b'{"a": 1, "a": 2}', b"", "a key stands twice"),
    (b'{"a":', b"", "is not valid JSON"),
    (b"\xff\xfe", b"", "is not valid JSON"),
    (b"[" * 100_000, b"", "is not valid JSON"),
]


@pytest.mark.parametrize(("header", "data", "message"), LIES, ids=[case[2][:40] for case in LIES])
def test_lying_header(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    """Every way a header can contradict itself or the file is named before data is mapped."""
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert "x.safetensors" in str(caught.value)


def test_header_length_is_bounded(tmp_path: Path) -> None:
    """A header longer than the file or the format's limit is refused before it is read."""
    for length in (MAX_HEADER_BYTES + 1, 2**63, 11):
        path = raw(tmp_path / "x.safetensors", b"{}", bytes(8), length)
        with pytest.raises(CheckpointError, match=f"claims a header of {length} bytes"):
            read_header(path)
    (tmp_path / "x.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="has 4 bytes, too few to hold a header"):
        read_header(tmp_path / "x.safetensors")


@settings(max_examples=150)
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 60))
def test_a_damaged_file_is_an_error_or_stays_in_bounds(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, cut: int
) -> None:
    """Whatever byte changes or is cut off, the reader says so or maps nothing outside the file."""
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    write_safetensors(path, {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.int8)}, "f32")
    data = bytearray(path.read_bytes())
    data[position % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]))
    try:
        header = read_header(path)
    except CheckpointError:
        return
    for tensor in header.values():
        assert 0 <= tensor.offset <= tensor.offset + tensor.size_bytes <= path.stat().st_size
