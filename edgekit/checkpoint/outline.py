"""What a checkpoint is, to be shown: all of a folder, or a hub repository without its weights.

A folder is opened and checked like for a build. Of a repository the configuration, the index and
the headers of the shards are fetched; the tokenizer and the weights' bytes are not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from edgekit.checkpoint.checkpoint import check_complete, open_checkpoint, read_config
from edgekit.checkpoint.formats import is_packed, open_weights
from edgekit.checkpoint.hub import (
    PICKLED_PATTERNS,
    cached_weights,
    fetch_description,
    hub_commit,
    local_folder,
    no_weights,
)
from edgekit.checkpoint.hub_headers import list_files
from edgekit.checkpoint.shards import read_shards
from edgekit.models.config import ModelConfig, tensor_shapes
from edgekit.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Outline:
    """What a checkpoint is.

    Attributes:
        config: Its architecture.
        revision: Its commit; None outside the hub's cache.
        weights_bytes: Bytes of its weights; of the files that hold them when they were not looked
            into.
        shards: Files of its weights.
        tensors_checked: Whether names and shapes of its tensors were held to the architecture.
    """

    config: ModelConfig
    revision: str | None
    weights_bytes: int
    shards: int
    tensors_checked: bool


def read_outline(
    model: str, *, revision: str | None = None, progress: Progress = SILENT
) -> Outline:
    """Look at MODEL, a folder or a hub id; what the hub's cache has is not fetched again.

    Raises:
        UnsupportedModelError: An architecture, key or weight format edgekit does not build.
        CheckpointError: Neither a folder nor a hub id, or a damaged or contradictory checkpoint.
        HubError: The repository is not found, gated, or offline and not cached.
    """
    folder = local_folder(model)
    if folder is None:
        described = fetch_description(model, revision, progress)
        commit = hub_commit(described) or ""
        folder = cached_weights(model, commit)
        if folder is None:
            return _outline_remote(model, commit, described)
    checkpoint = open_checkpoint(folder)
    return Outline(
        checkpoint.config,
        hub_commit(folder),
        checkpoint.stored_bytes,
        len(checkpoint.shards),
        tensors_checked=True,
    )


def _outline_remote(model: str, commit: str, folder: Path) -> Outline:
    """Look at a repository of which only the description is in ``folder``."""
    hf_config, _, config = read_config(folder)
    quantization = hf_config.get("quantization_config")
    packed = is_packed(quantization)
    files = list_files(model, commit)
    if not any(name.endswith(".safetensors") for name in files.sizes):
        pickled = [s for name, s in files.sizes.items() if fnmatch(name, PICKLED_PATTERNS[0])]
        if not pickled:
            raise no_weights(model)
        return Outline(config, commit, sum(pickled), len(pickled), tensors_checked=False)
    stored, shards = read_shards(folder, pickled=False, absent=files.read_header)
    if packed:
        size = sum(tensor.size_bytes for tensor in stored.values())
    else:
        tensors = open_weights(stored, quantization)
        check_complete(model, tensors, config)
        size = sum(tensors[name].stored_bytes for name in tensor_shapes(config))
    return Outline(config, commit, size, len(shards), tensors_checked=not packed)
