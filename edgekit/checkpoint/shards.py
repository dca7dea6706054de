"""Which file holds which tensor: one ``model.safetensors``, or shards named by an index.

Shard names come from an untrusted index, so each must be a plain file name inside the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.checkpoint.files import contained_file, read_errors
from edgekit.checkpoint.json_file import read_json
from edgekit.checkpoint.pytorch_zip import read_pytorch
from edgekit.checkpoint.safetensors import StoredTensor, read_header
from edgekit.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
MAX_SHARDS = 1000

Reader = Callable[[Path], dict[str, StoredTensor]]


@dataclass(frozen=True, slots=True)
class _Format:
    """How a weight format names its files, and what reads one.

    Attributes:
        single: The file of an unsharded checkpoint.
        index: The index of a sharded one.
        suffix: How a shard's name ends.
        read: Reads one file.
    """

    single: str
    index: str
    suffix: str
    read: Reader


_SAFETENSORS = _Format(SINGLE, INDEX, ".safetensors", read_header)
_PICKLED = _Format(PICKLED_SINGLE, PICKLED_INDEX, ".bin", read_pytorch)


def read_shards(
    folder: Path, *, pickled: bool = True, absent: Reader | None = None
) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Return every tensor of a checkpoint by name, and its shards in order.

    Safetensors go before PyTorch's own files, which are read without unpickling what they hold.

    Args:
        folder: The checkpoint.
        pickled: Take PyTorch's own files where there are no safetensors.
        absent: Reads the header of a safetensors file that is not in the folder; without it that
            is an error.

    Raises:
        CheckpointError: No weights, a missing shard, a name that leaves the folder, or an index
            and shards that disagree.
    """
    for form in (_SAFETENSORS, _PICKLED) if pickled else (_SAFETENSORS,):
        if contained_file(folder, form.index) is not None:
            return _read_indexed(folder, form, absent)
        path = contained_file(folder, form.single)
        if path is not None:
            return form.read(path), (path,)
        if absent is not None and form is _SAFETENSORS:
            return absent(folder / form.single), (folder / form.single,)
    with read_errors(folder):
        others = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pth"})
    if others:
        raise CheckpointError(
            f"{folder} has no {SINGLE} and no {INDEX}; its {others[0]} is not read by itself",
            "Convert it once, where you trust it: transformers' AutoModelForCausalLM"
            ".from_pretrained(...).save_pretrained(...) writes safetensors",
        )
    raise CheckpointError(
        f"{folder} has no {SINGLE} and no {INDEX}", "Point MODEL at a Hugging Face checkpoint"
    )


def _read_indexed(
    folder: Path, form: _Format, absent: Reader | None
) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    index = form.index
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map")
    names = sorted({_contained(shard, form) for shard in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} shards, at most {MAX_SHARDS} are read")
    missing = [name for name in names if contained_file(folder, name) is None]
    if missing and absent is None:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing from {folder}: {missing[0]}",
            "Download the checkpoint again: an interrupted download is resumed",
        )
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        read = absent if absent is not None and name in missing else form.read
        header = read(folder / name)
        for key, tensor in header.items():
            if weight_map.get(key) != name:
                raise CheckpointError(
                    f"{name} holds {key}, which {index} places in {weight_map.get(key)}"
                )
            tensors[key] = tensor
    for key, name in weight_map.items():
        if key not in tensors:
            raise CheckpointError(
                f"{index} places {key} in {name}, which does not hold it",
                "The checkpoint mixes files of two versions: download it again",
            )
    return tensors, tuple(folder / name for name in names)


def _contained(shard: object, form: _Format) -> str:
    """Return a shard's name if it is a plain file name that stays inside the folder."""
    plain = isinstance(shard, str) and shard == Path(shard).name and shard not in {"", ".", ".."}
    if not plain or "\\" in str(shard) or not str(shard).endswith(form.suffix):
        raise CheckpointError(
            f"{form.index} names the shard {shard!r}, which is not a plain file name",
            "Do not use this checkpoint: it reaches outside its folder",
        )
    return str(shard)
