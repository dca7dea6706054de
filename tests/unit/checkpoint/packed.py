"""Packs codes the way each published format does, one value at a time: slow, plain, independent."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(values: Array, bits: int) -> Array:
    """Pack unsigned codes [..., M] into int32 words [..., ceil(M * bits / 32)], lowest first."""
    per_word = 32 // bits
    words = np.zeros((*values.shape[:-1], -(-values.shape[-1] // per_word)), np.uint64)
    for index in range(values.shape[-1]):
        shift = np.uint64(bits * (index % per_word))
        words[..., index // per_word] |= values[..., index].astype(np.uint64) << shift
    return words.astype(np.uint32).view(np.int32)


def pack_awq(values: Array) -> Array:
    """Pack unsigned 4-bit codes [M, N] into int32 [M, N / 8] in AutoAWQ's order of nibbles."""
    words = values.reshape(values.shape[0], -1, 8)[:, :, AWQ_ORDER]
    return pack(words, 4)[:, :, 0]


def gptq(
    codes: Array, zeros: Array, scales: Array, bits: int, *, v1: bool = True
) -> dict[str, Any]:
    """Return the parts of a module from unsigned codes [N, K], zeros [N, G], scales [N, G]."""
    mask = 2**bits - 1
    return {
        "qweight": np.ascontiguousarray(pack(codes, bits).T),
        "qzeros": pack((zeros.T - v1) & mask, bits),
        "scales": np.ascontiguousarray(scales.T),
    }


def awq(codes: Array, zeros: Array, scales: Array) -> dict[str, Any]:
    """Return the parts of a module from unsigned 4-bit codes [N, K], zeros and scales [N, G]."""
    return {
        "qweight": pack_awq(np.ascontiguousarray(codes.T)),
        "qzeros": pack_awq(np.ascontiguousarray(zeros.T)),
        "scales": np.ascontiguousarray(scales.T),
    }


def compressed(codes: Array, zeros: Array | None, scales: Array, bits: int) -> dict[str, Any]:
    """Return the parts of a pack-quantized module from unsigned codes [N, K]."""
    parts = {
        "weight_packed": pack(codes, bits),
        "weight_scale": scales,
        "weight_shape": np.array(codes.shape, np.int64),
    }
    if zeros is not None:
        parts["weight_zero_point"] = np.ascontiguousarray(pack(zeros.T, bits).T)
    return parts
