"""Codes that a quantized checkpoint brings along, kept as they are.

A GPTQ, AWQ or compressed-tensors weight whose scheme edgekit stores (symmetric, contiguous groups
of 32, 64 or 128, or one scale per channel at 8 bits) is not quantized a second time: its scheme
replaces the recipe's for that linear.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np

from edgekit.checkpoint.checkpoint import Checkpoint
from edgekit.checkpoint.lazy import LazyTensor
from edgekit.checkpoint.prequantized import PrequantizedTensor, kept_codes
from edgekit.errors import CheckpointError, RecipeError
from edgekit.models.config import all_linears
from edgekit.quant.packing import pack_codes
from edgekit.quant.scheme import QuantScheme
from edgekit.quant.tensor import QuantizedWeight
from edgekit.recipe import Recipe

GROUP_SIZES = (32, 64, 128)


def kept_schemes(checkpoint: Checkpoint) -> dict[str, QuantScheme]:
    """Return the checkpoint's own scheme of every linear whose codes are kept."""
    kept = {}
    for linear in all_linears(checkpoint.config):
        scheme = kept_scheme(checkpoint.tensor(linear.weight_key))
        if scheme is not None:
            kept[linear.name] = scheme
    return kept


def kept_scheme(tensor: LazyTensor) -> QuantScheme | None:
    """Return the scheme of a weight whose codes are kept; None when it must be quantized."""
    codes = kept_codes(tensor)
    if codes is None:
        return None
    bits: Literal[4, 8] = 4 if codes.bits == 4 else 8
    fits = codes.group_size in GROUP_SIZES or (bits == 8 and codes.group_size == 0)
    return QuantScheme(bits, codes.group_size, "absmax") if fits else None


def refuse_requantizing(recipe: Recipe, kept: Collection[str]) -> None:
    """Refuse to calibrate a checkpoint that brings codes of its own.

    Args:
        recipe: How it is to be built.
        kept: Linears whose codes the checkpoint brings and the bundle would keep.

    Raises:
        RecipeError: There are some, and the recipe chooses codes or schemes by calibration.
    """
    if recipe.needs_calibration and kept:
        raise RecipeError(
            f"{len(kept)} linears of the checkpoint are quantized already (the first is "
            f"{min(kept)}), recipe {recipe.name} would choose their codes anew",
            "Use a recipe without calibration, which keeps them, or the unquantized checkpoint",
        )


def kept_weight(tensor: LazyTensor, exponent: int) -> QuantizedWeight | None:
    """Return a weight's own codes and scales for storing; None when it must be quantized.

    Raises:
        CheckpointError: A scale is not finite, or does not fit float16.
    """
    scheme = kept_scheme(tensor)
    if scheme is None or not isinstance(tensor, PrequantizedTensor):
        return None
    rows = tensor.shape[0]
    scales = tensor.scales(0, rows)
    with np.errstate(over="ignore"):
        sound = np.isfinite(scales.astype(np.float16)).all()
    if not sound:
        raise CheckpointError(
            f"the scales of {tensor.name} are not finite in float16",
            "The checkpoint is damaged: download it again",
        )
    return pack_codes(tensor.codes(0, rows), scales, scheme, scale_exponent=exponent)
