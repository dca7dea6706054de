"""A checkpoint folder, opened and checked: complete, of one architecture, nothing unexplained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.checkpoint.files import is_folder
from edgekit.checkpoint.formats import open_weights
from edgekit.checkpoint.json_file import find_json, read_json
from edgekit.checkpoint.lazy import LazyTensor, read_all
from edgekit.checkpoint.lora import merge_adapter
from edgekit.checkpoint.prequantized import PrequantizedTensor
from edgekit.checkpoint.shards import read_shards
from edgekit.checkpoint.tokenizer_files import TokenizerFiles, find_tokenizer
from edgekit.errors import CheckpointError
from edgekit.models.config import ModelConfig, tensor_shapes
from edgekit.models.families import model_config_from_hf
from edgekit.models.generation import generation_defaults


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: Its folder.
        config: Its architecture.
        hf_config: ``config.json`` as parsed.
        generation_config: ``generation_config.json`` as parsed; empty when there is none.
        tokenizer: Its tokenizer's files.
        shards: The files of its weights, in order.
        tensors: Every weight by name, the adapter merged.
        adapter: Files of the LoRA adapter that was merged; empty when there was none.
    """

    path: Path
    config: ModelConfig
    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tokenizer: TokenizerFiles
    shards: tuple[Path, ...]
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    adapter: tuple[Path, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the weights, sorted."""
        return tuple(sorted(self.tensors))

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file the build reads: configuration, shards, tokenizer, adapter."""
        own = (self.path / "config.json", *self.shards, *self.tokenizer.files.values())
        return tuple(dict.fromkeys((*own, *self.adapter)))

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


def open_checkpoint(path: Path, *, adapter: Path | None = None) -> Checkpoint:
    """Open a checkpoint folder and check that it is whole.

    Args:
        path: The folder, as Hugging Face lays it out.
        adapter: Folder of a PEFT LoRA adapter to merge into the weights.

    Raises:
        UnsupportedModelError: An architecture, key, weight format or adapter edgekit does not
            build.
        CheckpointError: Something is missing, damaged or contradictory.
    """
    if not is_folder(path):
        raise CheckpointError(f"{path} is not a folder", "Point MODEL at a checkpoint folder")
    hf_config, generation_config, config = read_config(path)
    tokenizer = find_tokenizer(path)
    stored, shards = read_shards(path)
    tensors = open_weights(stored, hf_config.get("quantization_config"))
    check_complete(str(path), tensors, config)
    kept = {name: tensors[name] for name in tensor_shapes(config)}
    adapter_files: tuple[Path, ...] = ()
    if adapter is not None:
        kept, adapter_files = merge_adapter(adapter, kept)
    return Checkpoint(
        path, config, hf_config, generation_config, tokenizer, shards, kept, adapter_files
    )


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any], ModelConfig]:
    """Read what a folder says of its model: ``config.json``, ``generation_config.json``, both.

    Raises:
        UnsupportedModelError: An architecture or key that edgekit does not build.
        CheckpointError: ``config.json`` is missing, or one of them is damaged.
    """
    hf_config = read_json(path / "config.json")
    generation_config = find_json(path / "generation_config.json") or {}
    generation_defaults(generation_config)
    return hf_config, generation_config, model_config_from_hf(hf_config, generation_config)


def check_complete(model: str, tensors: Mapping[str, LazyTensor], config: ModelConfig) -> None:
    """Compare names and shapes with the architecture, both ways.

    Args:
        model: What the checkpoint is called in an error.
        tensors: Its weights.
        config: Its architecture.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape.
    """
    wanted = tensor_shapes(config)
    missing = sorted(set(wanted) - set(tensors))
    if missing:
        raise CheckpointError(
            f"{model} lacks {len(missing)} of {len(wanted)} tensors: {missing[0]}",
            "The checkpoint is incomplete: download it again",
        )
    allowed = {"lm_head.weight"} if config.tie_word_embeddings else set()
    extra = set(tensors) - set(wanted) - allowed
    unexpected = sorted(name for name in extra if not _is_empty_bias(tensors, name))
    if unexpected:
        raise CheckpointError(
            f"{model} holds {len(unexpected)} tensors that a {config.model_type} of its "
            f"config.json does not have: {unexpected[0]}",
            "The weights and config.json are not of one model",
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{name} has shape {list(tensors[name].shape)}, config.json asks for {list(shape)}",
                "The weights and config.json are not of one model",
            )


def _is_empty_bias(tensors: Mapping[str, LazyTensor], name: str) -> bool:
    """Tell whether this is an all-zero bias that a quantizer put beside its weight.

    Old GPTQ checkpoints carry one for every module, whether the model has it or not.
    """
    weight = tensors.get(f"{name.removesuffix('.bias')}.weight")
    return (
        name.endswith(".bias")
        and isinstance(weight, PrequantizedTensor)
        and tensors[name].shape == weight.shape[:1]
        and not read_all(tensors[name]).any()
    )
