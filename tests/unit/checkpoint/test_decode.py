"""Stored weights as float32: every float type and fp8 block, checked against other code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import to_bf16, write_safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.checkpoint.decode import (
    BlockScaledFp8Tensor,
    FloatTensor,
    bf16_to_float32,
    check_fp8_scale,
    e4m3_table,
)
from edgekit.checkpoint.lazy import read_all, strips
from edgekit.checkpoint.safetensors import read_header
from edgekit.errors import CheckpointError

Array = np.ndarray[Any, Any]


def stored(path: Path, tensors: dict[str, Array], dtype: str = "f32", **kinds: str) -> Any:
    write_safetensors(path / "x.safetensors", tensors, dtype, kinds)
    return read_header(path / "x.safetensors")


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_rows_are_the_stored_values(tmp_path: Path, dtype: str) -> None:
    """Rows, strips and columns of every float type hold exactly the stored values."""
    weight = np.random.default_rng(1).standard_normal((13, 6)).astype(np.float32)
    tensor = FloatTensor(stored(tmp_path, {"w": weight}, dtype)["w"])
    wanted = {
        "bf16": bf16_to_float32(to_bf16(weight)),
        "f16": weight.astype(np.float16).astype(np.float32),
        "f32": weight,
    }[dtype]
    rows = read_all(tensor)
    np.testing.assert_array_equal(rows, wanted)
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert rows.flags.writeable
    np.testing.assert_array_equal(np.vstack([s for _, s in strips(tensor, 4)]), wanted)
    np.testing.assert_array_equal(tensor.columns(2, 5), wanted[:, 2:5])
    assert tensor.stored_bytes == weight.size * (4 if dtype == "f32" else 2)


@given(hnp.arrays(np.uint16, st.integers(1, 64)))
def test_bf16_is_the_upper_half_of_float32(bits: Array) -> None:
    """Widening keeps every bit pattern, NaN and denormals included."""
    wide = bf16_to_float32(bits)
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, bits)
    assert not (wide.view(np.uint32) & 0xFFFF).any()


@pytest.mark.calibrate
def test_e4m3_is_torch_s() -> None:
    """All 256 fp8 values equal torch's float8_e4m3fn."""
    import torch

    wanted = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3_table(), wanted)


@pytest.mark.parametrize("shape", [(256, 256), (130, 200), (5, 7)])
def test_fp8_blocks_are_scaled(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Each value is its E4M3 number times its block's factor, ragged edges included."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 127, shape).astype(np.uint8)
    blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
    scales = rng.random(blocks).astype(np.float32) + 0.5
    header = stored(tmp_path, {"w": codes, "w_scale_inv": scales}, "f32", w="F8_E4M3")
    tensor = BlockScaledFp8Tensor(header["w"], header["w_scale_inv"], (128, 128))
    check_fp8_scale(header["w"], header["w_scale_inv"], (128, 128))
    rows, columns = np.indices(shape)
    wanted = e4m3_table()[codes] * scales[rows // 128, columns // 128]
    np.testing.assert_array_equal(read_all(tensor), wanted)
    start, stop = shape[0] // 3, shape[0] // 3 + 2
    np.testing.assert_array_equal(tensor.rows(start, stop), wanted[start:stop])


def test_fp8_scales_must_cover_the_weight(tmp_path: Path) -> None:
    """Scales of another block size are refused with both shapes."""
    scales = np.ones((2, 1), np.float32)
    tensors: dict[str, Array] = {"w": np.zeros((256, 256), np.uint8), "s": scales}
    header = stored(tmp_path, tensors, "f32", w="F8_E4M3")
    with pytest.raises(CheckpointError, match=r"s is F32 \[2, 1\], blocks of \[128, 128\]"):
        check_fp8_scale(header["w"], header["s"], (128, 128))
