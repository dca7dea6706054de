"""A checkpoint of a family edgekit has no graph for: its files checked, its weights left alone.

What the native path knows of a model (its tensors, its keys) is the other exporter's business here.
Only safetensors are taken, and never code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.checkpoint.json_file import find_json, read_json
from edgekit.checkpoint.shards import INDEX, read_shards
from edgekit.checkpoint.tokenizer_files import TokenizerFiles, find_tokenizer
from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.families import end_tokens, refuse_parameters, sparse_error
from edgekit.models.generation import generation_defaults

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


@dataclass(frozen=True, slots=True)
class Source:
    """An opened checkpoint.

    Attributes:
        path: Its folder.
        hf_config: ``config.json`` as parsed.
        model_type: Its family.
        tokenizer: Its tokenizer's files.
        shards: Its safetensors files, in order.
        stored_bytes: Bytes of all weights.
        parameters: Number of weights.
        eos_token_ids: End tokens of ``config.json`` and ``generation_config.json``.
    """

    path: Path
    hf_config: Mapping[str, Any]
    model_type: str
    tokenizer: TokenizerFiles
    shards: tuple[Path, ...]
    stored_bytes: int
    parameters: int
    eos_token_ids: tuple[int, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file the build reads."""
        return (self.path / "config.json", *self.shards, *self.tokenizer.files.values())

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the shards, and the index that names them."""
        index = self.path / INDEX
        return (*self.shards, index) if index.is_file() else self.shards


def open_source(path: Path) -> Source:
    """Open a checkpoint folder.

    Raises:
        UnsupportedModelError: A mixture of experts, latent attention, quantized weights, or 13 B
            parameters and more.
        CheckpointError: Something is missing or damaged.
    """
    config = read_json(path / "config.json")
    generation_config = find_json(path / "generation_config.json") or {}
    generation_defaults(generation_config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise CheckpointError(f"{path / 'config.json'} has no model_type")
    refusal = sparse_error(config)
    if refusal is not None:
        raise refusal
    if config.get("quantization_config"):
        raise UnsupportedModelError(
            "the weights are quantized already, which --exporter optimum does not read",
            "Use the unquantized checkpoint it was made from",
        )
    tensors, shards = read_shards(path, pickled=False)
    parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
    refuse_parameters(parameters)
    return Source(
        path=path,
        hf_config=config,
        model_type=kind,
        tokenizer=find_tokenizer(path),
        shards=shards,
        stored_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        parameters=parameters,
        eos_token_ids=end_tokens(config, generation_config),
    )


def context_limit(config: Mapping[str, Any], wanted: int) -> int:
    """Return how many tokens a sequence may hold, at most ``wanted``.

    An exported graph attends to its whole cache and its rotary frequencies are those of short
    texts, so a sliding window and the length that ``longrope`` was trained with bound it, too.
    """
    limits = [config[key] for key in _CONTEXT_KEYS if _is_count(config.get(key))]
    if config.get("use_sliding_window", True) and _is_count(config.get("sliding_window")):
        limits.append(config["sliding_window"])
    original = config.get("original_max_position_embeddings")
    if _is_count(original):
        limits.append(original)
    return int(min([wanted, *limits]))


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
