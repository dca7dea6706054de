"""Which file holds which tensor: one ``model.safetensors``, or shards named by an index.

Shard names come from an untrusted index, so each must be a plain file name inside the folder, and
a link may lead out of it only to the blobs of a Hugging Face cache, which is made of such links.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.checkpoint.json_file import read_json
from edgekit.checkpoint.safetensors import StoredTensor, read_header
from edgekit.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARDS = 1000


def read_shards(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Return every tensor of a checkpoint by name, and its shards in order.

    Raises:
        CheckpointError: No weights, a missing shard, a name that leaves the folder, or an index
            and shards that disagree.
    """
    if (folder / INDEX).is_file():
        return _read_indexed(folder)
    path = contained_file(folder, SINGLE)
    if path is not None:
        return read_header(path), (path,)
    if list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds pickled weights only (.bin), which edgekit does not load: unpickling "
            "executes code",
            "Convert them once, where you trust them: transformers' AutoModelForCausalLM"
            ".from_pretrained(...).save_pretrained(...) writes safetensors",
        )
    raise CheckpointError(
        f"{folder} has no {SINGLE} and no {INDEX}", "Point MODEL at a Hugging Face checkpoint"
    )


def contained_file(folder: Path, name: str) -> Path | None:
    """Return a file of a folder; None when it is not there.

    Raises:
        CheckpointError: It is a link to somewhere else.
    """
    path = folder / name
    if not path.is_file():
        return None
    root, target = folder.resolve(), path.resolve()
    # <cache>/models--owner--name/snapshots/<revision>/<file> links to ../../blobs/<digest>.
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"{path} is a link that leaves its folder",
            "Put the file itself there: a checkpoint is read from its own folder only",
        )
    return path


def _read_indexed(folder: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map")
    names = sorted({_contained(shard) for shard in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{INDEX} names {len(names)} shards, at most {MAX_SHARDS} are read")
    missing = [name for name in names if contained_file(folder, name) is None]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} shards are missing from {folder}: {missing[0]}",
            "Download the checkpoint again: an interrupted download is resumed",
        )
    tensors: dict[str, StoredTensor] = {}
    for name in names:
        header = read_header(folder / name)
        for key, tensor in header.items():
            if weight_map.get(key) != name:
                raise CheckpointError(
                    f"{name} holds {key}, which {INDEX} places in {weight_map.get(key)}"
                )
            tensors[key] = tensor
    for key, name in weight_map.items():
        if key not in tensors:
            raise CheckpointError(
                f"{INDEX} places {key} in {name}, which does not hold it",
                "The checkpoint mixes files of two versions: download it again",
            )
    return tensors, tuple(folder / name for name in names)


def _contained(shard: object) -> str:
    """Return a shard's name if it is a plain file name that stays inside the folder."""
    plain = isinstance(shard, str) and shard == Path(shard).name and shard not in {"", ".", ".."}
    if not plain or "\\" in str(shard) or not str(shard).endswith(".safetensors"):
        raise CheckpointError(
            f"{INDEX} names the shard {shard!r}, which is not a plain file name",
            "Do not use this checkpoint: it reaches outside its folder",
        )
    return str(shard)
