"""Stored weights to float16, rounded to nearest even.

NumPy converts float32 to float16 one by one and needs passes of its own for the range: for the
embedding of a 7B model (152 064 x 3 584) seconds that the quantization beside it then lacks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import CheckpointError, QuantizationError

_OVERFLOW = np.uint32(0x477FF000)
"""Bits of 65520, the smallest float32 that rounds to infinity."""
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)


def to_float16(name: str, rows: npt.NDArray[Any], exponent: int) -> npt.NDArray[np.float16]:
    """Return weights times ``2**exponent`` as float16, rounded to nearest even.

    Args:
        name: Of the tensor, for errors.
        rows: float32 of any shape, or uint16: bits of bfloat16.
        exponent: The power.

    Returns:
        Same shape.

    Raises:
        CheckpointError: A value is NaN or infinite.
        QuantizationError: A value overflows float16.
    """
    from edgekit.quant import kernels  # noqa: PLC0415 - Numba takes half a second to import

    flat = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1] if rows.ndim else 1)
    source, shift = kernels.as_bits(flat)
    out = np.empty(flat.shape, np.float16)
    worst = kernels.round_to_float16(source, shift, np.float32(2.0**exponent), out.view(np.uint16))
    if worst >= _OVERFLOW:
        if worst < _INFINITY or _all_finite(source, shift):
            raise QuantizationError(f"{name} has values that float16 cannot hold")
        raise CheckpointError(
            f"{name} holds NaN or infinity", "The checkpoint is damaged: download it again"
        )
    return out.reshape(rows.shape)


def _all_finite(source: npt.NDArray[Any], shift: np.uint32) -> bool:
    """Whether no value is NaN or infinite; a finite one can overflow float32 by the factor."""
    return bool((((source.astype(np.uint32) << shift) & _MAGNITUDE) < _INFINITY).all())
