"""A checkpoint folder, opened and checked: complete, of one architecture, nothing unexplained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.checkpoint.decode import (
    FLOAT_DTYPES,
    BlockScaledFp8Tensor,
    FloatTensor,
    check_fp8_scale,
)
from edgekit.checkpoint.json_file import read_json
from edgekit.checkpoint.lazy import LazyTensor
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.checkpoint.shards import read_shards
from edgekit.checkpoint.tokenizer_files import TokenizerFiles, find_tokenizer
from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.config import ModelConfig, tensor_shapes
from edgekit.models.families import model_config_from_hf

_HARMLESS_SUFFIXES = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints stored and that follow from the configuration."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: Its folder.
        config: Its architecture.
        hf_config: ``config.json`` as parsed.
        generation_config: ``generation_config.json`` as parsed; empty when there is none.
        tokenizer: Its tokenizer's files.
        shards: Its safetensors files, in order.
        tensors: Every weight by name.
    """

    path: Path
    config: ModelConfig
    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tokenizer: TokenizerFiles
    shards: tuple[Path, ...]
    tensors: Mapping[str, LazyTensor] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the weights, sorted."""
        return tuple(sorted(self.tensors))

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file the build reads: configuration, shards, tokenizer."""
        own = (self.path / "config.json", *self.shards, *self.tokenizer.files.values())
        return tuple(dict.fromkeys(own))

    @property
    def stored_bytes(self) -> int:
        """Return the bytes of all weights in the checkpoint."""
        return sum(tensor.stored_bytes for tensor in self.tensors.values())

    def tensor(self, name: str) -> LazyTensor:
        """Open a weight by name.

        Raises:
            CheckpointError: There is none of that name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} holds no tensor {name}") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder and check that it is whole.

    Raises:
        UnsupportedModelError: An architecture, key or weight format edgekit does not build.
        CheckpointError: Something is missing, damaged or contradictory.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder", "Point MODEL at a checkpoint folder")
    hf_config = read_json(path / "config.json")
    generation = path / "generation_config.json"
    generation_config = read_json(generation) if generation.is_file() else {}
    config = model_config_from_hf(hf_config, generation_config)
    tokenizer = find_tokenizer(path)
    stored, shards = read_shards(path)
    tensors = _decoders(stored, hf_config.get("quantization_config"))
    _check_complete(path, tensors, config)
    kept = {name: tensors[name] for name in tensor_shapes(config)}
    return Checkpoint(path, config, hf_config, generation_config, tokenizer, shards, kept)


def _decoders(stored: Mapping[str, StoredTensor], quantization: Any) -> dict[str, LazyTensor]:
    """Pair every stored tensor with what decodes it."""
    block = _fp8_block(quantization)
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in stored.items():
        if name.endswith(("_scale_inv", *_HARMLESS_SUFFIXES)):
            continue
        if tensor.dtype in FLOAT_DTYPES:
            tensors[name] = FloatTensor(tensor)
        elif tensor.dtype == "F8_E4M3" and block is not None:
            scale = stored.get(f"{name}_scale_inv")
            if scale is None:
                raise CheckpointError(f"{name} is fp8 but {name}_scale_inv is missing")
            check_fp8_scale(tensor, scale, block)
            tensors[name] = BlockScaledFp8Tensor(tensor, scale, block)
        else:
            raise CheckpointError(
                f"{tensor.path.name}: {name} has dtype {tensor.dtype}, weights must be bf16, f16 "
                "or f32",
                "Use the unquantized checkpoint",
            )
    return tensors


def _fp8_block(quantization: Any) -> tuple[int, int] | None:
    """Return [rows, columns] of an fp8 checkpoint's blocks; None for an unquantized one."""
    if quantization is None:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method != "fp8":
        raise UnsupportedModelError(
            f"the checkpoint is quantized with {method!r}, which edgekit does not read",
            "Use the unquantized checkpoint",
        )
    block = quantization.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(b) is int for b in block)):
        raise CheckpointError(f"config.json: weight_block_size is {block!r}, not two sizes")
    return block[0], block[1]


def _check_complete(path: Path, tensors: Mapping[str, LazyTensor], config: ModelConfig) -> None:
    """Compare names and shapes with the architecture, both ways."""
    wanted = tensor_shapes(config)
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(wanted)} tensors: {missing[0]}",
            "The checkpoint is incomplete: download it again",
        )
    allowed = {"lm_head.weight"} if config.tie_word_embeddings else set()
    unexpected = sorted(set(tensors) - set(wanted) - allowed)
    if unexpected:
        raise CheckpointError(
            f"{path} holds {len(unexpected)} tensors that a {config.model_type} of its config.json "
            f"does not have: {unexpected[0]}",
            "The weights and config.json are not of one model",
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)}, config.json asks for {list(shape)}",
                "The weights and config.json are not of one model",
            )
