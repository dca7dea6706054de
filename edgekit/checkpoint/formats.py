"""Which stored tensors make which weight: plain floats, fp8 blocks, or an integer format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.checkpoint import awq, compressed_tensors, gptq, qweight
from edgekit.checkpoint.decode import (
    FLOAT_DTYPES,
    BlockScaledFp8Tensor,
    FloatTensor,
    check_fp8_scale,
)
from edgekit.checkpoint.lazy import LazyTensor
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError, UnsupportedModelError

HARMLESS_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints stored and that follow from the configuration."""

FP8_SCALE = "_scale_inv"


def open_weights(stored: Mapping[str, StoredTensor], quantization: Any) -> dict[str, LazyTensor]:
    """Pair every stored tensor with what decodes it.

    Args:
        stored: All tensors of the shards by name.
        quantization: ``quantization_config`` of ``config.json``; None when there is none.

    Returns:
        Weights by name; parts of quantized weights and harmless buffers are not among them.

    Raises:
        UnsupportedModelError: A quantization edgekit does not read.
        CheckpointError: A weight has a type that its checkpoint cannot mean.
    """
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    weights: dict[str, LazyTensor] = {}
    parts: tuple[str, ...] = ()
    if quantization is None:
        pass
    elif method == "fp8":
        weights, parts = _read_fp8(stored, quantization), (FP8_SCALE,)
    elif method == "gptq":
        weights, parts = {**gptq.read_gptq(stored, quantization)}, _suffixes(gptq.PARTS)
    elif method == "awq":
        weights, parts = {**awq.read_awq(stored, quantization)}, _suffixes(qweight.PARTS)
    elif method == "compressed-tensors":
        weights = compressed_tensors.read_compressed(stored, quantization)
        parts = _suffixes(compressed_tensors.PARTS)
    else:
        raise UnsupportedModelError(
            f"the checkpoint is quantized with {method!r}; edgekit reads fp8, gptq, awq and "
            "compressed-tensors",
            "Use the unquantized checkpoint",
        )
    for name, tensor in stored.items():
        if name not in weights and not name.endswith((*parts, *HARMLESS_SUFFIXES)):
            weights[name] = _plain(tensor)
    return weights


def is_packed(quantization: Any) -> bool:
    """Tell whether weights are made of parts whose bytes must be read to pair them.

    Raises:
        UnsupportedModelError: As :func:`open_weights`, for what ``quantization_config`` says alone.
    """
    open_weights({}, quantization)
    return isinstance(quantization, Mapping) and quantization["quant_method"] != "fp8"


def _suffixes(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in parts)


def _plain(tensor: StoredTensor) -> FloatTensor:
    if tensor.dtype in FLOAT_DTYPES:
        return FloatTensor(tensor)
    remedy = "Use the unquantized checkpoint"
    if tensor.name.endswith((".qweight", ".weight_packed", FP8_SCALE)) or tensor.dtype == "F8_E4M3":
        remedy = "It looks quantized: restore quantization_config in config.json"
    raise CheckpointError(
        f"{tensor.path.name}: {tensor.name} has dtype {tensor.dtype}, weights must be bf16, f16 or "
        "f32",
        remedy,
    )


def _read_fp8(
    stored: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, LazyTensor]:
    """Return DeepSeek's block-scaled fp8 weights by name."""
    block = quantization.get("weight_block_size")
    if not (
        isinstance(block, list) and len(block) == 2 and all(type(b) is int and b > 0 for b in block)
    ):
        raise UnsupportedModelError(
            f"config.json: weight_block_size of the fp8 checkpoint is {block!r}, not two sizes",
            "Use a block-scaled fp8 checkpoint, or the unquantized one",
        )
    weights: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        if tensor.dtype != "F8_E4M3":
            continue
        scale = stored.get(f"{name}{FP8_SCALE}")
        if scale is None:
            raise CheckpointError(
                f"{name} is fp8 but {name}{FP8_SCALE} is missing",
                "The checkpoint is incomplete: download it again",
            )
        check_fp8_scale(tensor, scale, (block[0], block[1]))
        weights[name] = BlockScaledFp8Tensor(tensor, scale, (block[0], block[1]))
    return weights
