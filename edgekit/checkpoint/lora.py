"""Merging a PEFT LoRA adapter into the weights, a strip of rows at a time.

A merged weight is ``W + scaling * B @ A`` with A [r, K], B [N, r] and ``scaling`` ``alpha / r``, or
``alpha / sqrt(r)`` with ``use_rslora`` (arXiv 2106.09685, 2312.03732). The sum is taken in float32
with the machine's BLAS: the same bytes on one machine, not on every one.

What a merge cannot express is refused: DoRA, biases, retrained modules, and initializations
(PiSSA, OLoRA, LoftQ, CorDA) that changed the base weights too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.checkpoint.decode import FLOAT_DTYPES, FloatTensor
from edgekit.checkpoint.files import contained_file
from edgekit.checkpoint.json_file import read_json
from edgekit.checkpoint.lazy import Float32Array, LazyTensor, read_all
from edgekit.checkpoint.safetensors import StoredTensor, read_header
from edgekit.errors import CheckpointError, UnsupportedModelError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_RANK = 4096

_SCALING_KEYS = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type"}
_INERT = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",  # init_lora_weights says whether LoftQ was used
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",  # of use_qalora
    "revision",
    "runtime_config",
    "target_modules",  # the tensors say it
    "task_type",
}
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights as they were."""

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class LoraTensor:
    """A weight with its low-rank update added; a :class:`LazyTensor`.

    Attributes:
        base: The weight as its checkpoint has it, [N, K].
        down: ``lora_A`` [r, K].
        up: ``lora_B`` [N, r].
        scaling: Factor of the product.
    """

    base: LazyTensor
    down: FloatTensor
    up: FloatTensor
    scaling: float

    @property
    def name(self) -> str:
        """Checkpoint key of the base weight."""
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [N, K]."""
        return self.base.shape

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint and in the adapter."""
        return self.base.stored_bytes + self.down.stored_bytes + self.up.stored_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return merged rows as fresh float32."""
        merged = self.base.rows(start, stop)
        factor = self.up.rows(start, stop) * np.float32(self.scaling)
        merged += factor @ read_all(self.down)
        return merged


def merge_adapter(
    folder: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], tuple[Path, ...]]:
    """Return the weights with an adapter merged into them, and the adapter's files.

    Args:
        folder: A PEFT adapter: ``adapter_config.json`` and ``adapter_model.safetensors``.
        tensors: The base model's weights by name.

    Raises:
        UnsupportedModelError: Not LoRA, or a kind of it that cannot be merged into weights.
        CheckpointError: Files are missing or damaged, or do not fit the base model.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    _check_config(config)
    path = contained_file(folder, ADAPTER_WEIGHTS)
    if path is None:
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS}",
            "Save the adapter with safetensors: save_pretrained(..., safe_serialization=True)",
        )
    merged = dict(tensors)
    for module, (down, up) in _pairs(read_header(path)).items():
        key = f"{module}.weight"
        if key == "lm_head.weight" and key not in tensors:
            raise UnsupportedModelError(
                "the adapter changes lm_head, which the base model shares with its embedding",
                "Merge the adapter with peft into an untied model and build the result",
            )
        if key not in tensors:
            raise CheckpointError(
                f"the adapter changes {module}, which the base model does not have",
                f"It was trained on {config.get('base_model_name_or_path')}: build that model",
            )
        rank = _check_shapes(tensors[key], down, up)
        merged[key] = LoraTensor(
            tensors[key], FloatTensor(down), FloatTensor(up), _scaling(config, module, rank)
        )
    return merged, (folder / ADAPTER_CONFIG, path)


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse every setting that is neither modelled, inert nor switched off."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{ADAPTER_CONFIG} has peft_type {kind!r}; edgekit merges LORA",
            "Merge the adapter with peft (merge_and_unload) and build the result",
        )
    for key, value in config.items():
        known = key in _SCALING_KEYS or key in _INERT
        off = not value or (key == "bias" and value == "none")
        initial = key == "init_lora_weights" and value in _INITIALIZATIONS
        if not (known or off or initial):
            raise UnsupportedModelError(
                f"{ADAPTER_CONFIG} has {key} = {value!r}, which edgekit does not merge",
                "Merge the adapter with peft (merge_and_unload) and build the result",
            )


def _pairs(header: Mapping[str, StoredTensor]) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Return ``lora_A`` and ``lora_B`` by module, in the order of their names."""
    sides: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in sorted(header.items()):
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(
                f"{ADAPTER_WEIGHTS} holds {name}, which is not a LoRA factor of a linear",
                "Merge the adapter with peft (merge_and_unload) and build the result",
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise CheckpointError(f"{ADAPTER_WEIGHTS} holds no tensors")
    for module, pair in sides.items():
        if len(pair) != 2:
            missing = "AB".replace(next(iter(pair)), "")
            raise CheckpointError(
                f"{ADAPTER_WEIGHTS} lacks {PREFIX}{module}.lora_{missing}.weight",
                "The adapter is incomplete: download it again",
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _check_shapes(base: LazyTensor, down: StoredTensor, up: StoredTensor) -> int:
    """Return the rank of a pair of factors that fits its base weight."""
    rank = down.shape[0] if down.shape else 0
    fits = 0 < rank <= MAX_RANK and len(base.shape) == 2
    fits = fits and (down.shape, up.shape) == ((rank, base.shape[-1]), (base.shape[0], rank))
    if not fits:
        raise CheckpointError(
            f"the adapter's factors for {base.name} are {list(down.shape)} and {list(up.shape)}, "
            f"the weight is {list(base.shape)}",
            "The adapter was trained on another model",
        )
    for tensor in (down, up):
        if tensor.dtype not in FLOAT_DTYPES:
            raise CheckpointError(f"{ADAPTER_WEIGHTS}: {tensor.name} has dtype {tensor.dtype}")
    return rank


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor of ``B @ A``; the declared rank must be the stored one."""
    declared = _by_pattern(config, "rank_pattern", "r", module)
    alpha = _by_pattern(config, "alpha_pattern", "lora_alpha", module)
    if declared != rank:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} declares rank {declared:g} for {module}, its factors have {rank}",
            "The adapter's files are not of one training run",
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(config: Mapping[str, Any], patterns: str, key: str, module: str) -> float:
    """Return a module's own value of ``key``, or the adapter's.

    PEFT's patterns are regular expressions, and the first that matches wins; plain module names,
    whole or a suffix, are all that is read here.
    """
    value = config.get(key)
    for pattern, own in (config.get(patterns) or {}).items():
        plain = pattern.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", plain):
            raise UnsupportedModelError(
                f"{ADAPTER_CONFIG}: {patterns} has the expression {pattern!r}; plain module names "
                "are read",
                "Merge the adapter with peft (merge_and_unload) and build the result",
            )
        if module == plain or (plain == pattern and module.endswith(f".{plain}")):
            value = own
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise CheckpointError(f"{ADAPTER_CONFIG}: {key} must be a positive number, is {value!r}")
    return float(value)
