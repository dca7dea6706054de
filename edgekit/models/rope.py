"""Rotary embedding frequencies and tables, for every rope type the families use.

Sources: RoFormer (arXiv 2104.09864), position interpolation (arXiv 2306.15595, ``linear``),
Llama 3.1's frequency-dependent scaling (``llama3``), YaRN (arXiv 2309.00071). Tables are computed
in float64 and rounded once.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgekit.models.config import RopeConfig

Float64Array = npt.NDArray[np.float64]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Float64Array:
    """Return the angle per position of each pair of dimensions, float64 [head_dim / 2]."""
    plain = rope.rope_theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.rope_type == "default":
        return plain
    if rope.rope_type == "linear":
        return plain / rope.factor
    if rope.rope_type == "llama3":
        return _llama3(rope, plain)
    return _yarn(rope, head_dim, plain)


def cos_sin_tables(
    rope: RopeConfig, head_dim: int, positions: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cos and sin of every position, float32 [P, head_dim / 2] each.

    ``attention_factor`` is multiplied in, so that scores grow by its square.
    """
    angles = positions.astype(np.float64)[:, None] * inverse_frequencies(rope, head_dim)
    factor = rope.attention_factor
    return (
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
    )


def yarn_mscale(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's attention scaling, ``0.1 * weight * ln(factor) + 1`` (arXiv 2309.00071)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _required(value: float | None) -> float:
    if value is None:  # the family readers fill every field of their rope type
        raise AssertionError
    return value


def _llama3(rope: RopeConfig, plain: Float64Array) -> Float64Array:
    low, high = _required(rope.low_freq_factor), _required(rope.high_freq_factor)
    context = _required(rope.original_max_position_embeddings)
    wavelength = 2 * math.pi / plain
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(rope: RopeConfig, head_dim: int, plain: Float64Array) -> Float64Array:
    context = _required(rope.original_max_position_embeddings)

    def dimension(rotations: float) -> float:
        ratio = math.log(context / (rotations * 2 * math.pi))
        return head_dim * ratio / (2 * math.log(rope.rope_theta))

    low = max(math.floor(dimension(_required(rope.beta_fast))), 0)
    high = min(math.ceil(dimension(_required(rope.beta_slow))), head_dim - 1)
    width = max(high - low, 0.001)
    ramp = np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)
    return ramp * plain / rope.factor + (1 - ramp) * plain
