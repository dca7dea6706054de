"""The unquantized checkpoint that ``edgekit eval --reference`` measures a bundle against.

Divergence says something of the quantization only when it is the bundle's own model: one of other
shapes or another vocabulary is refused, and one of other bytes (another revision, or the bundle has
an adapter merged) is named in a warning, since comparing with it may be what is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle.digests import hash_files
from edgekit.bundle.reader import Bundle
from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.files import read_errors
from edgekit.checkpoint.hub import resolve_model
from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.families import FAMILIES
from edgekit.progress import SILENT, Progress

SHAPE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""Keys of ``ModelConfig`` in which a bundle and its reference cannot differ."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A reference that fits a bundle.

    Attributes:
        checkpoint: As opened.
        warnings: One sentence each on what makes it another model than the bundle's.
    """

    checkpoint: Checkpoint
    warnings: tuple[str, ...]


def open_reference(
    bundle: Bundle,
    model: str,
    *,
    threads: int = 2,
    digests: bool = True,
    progress: Progress = SILENT,
) -> Compared:
    """Open the checkpoint that a bundle is compared with.

    Args:
        bundle: An opened bundle.
        model: Checkpoint folder or hub id.
        threads: Files hashed at once.
        digests: Compare the files' bytes with those the bundle was built from, not only the
            architecture.
        progress: Told about a stage ``compare``.

    Raises:
        UnsupportedModelError: The bundle is of a family whose unquantized model edgekit cannot run.
        CheckpointError: The checkpoint is damaged, or has other shapes than the bundle's model.
    """
    kind = bundle.manifest.model["model_type"]
    if kind not in FAMILIES:
        raise UnsupportedModelError(
            f"edgekit has no reference model of family {kind!r}, so --reference measures nothing",
            "Leave it out; the build's own check against the exported graph is in `inspect`",
        )
    progress.start("compare", 0)
    checkpoint = open_checkpoint(resolve_model(model, progress=progress))
    own, other = bundle.manifest.model["config"], checkpoint.config.to_dict()
    _require_shapes(own, other)
    differing = sorted(key for key in own.keys() & other.keys() if own[key] != other[key])
    warnings = [f"{model} has another {', '.join(differing)}"] if differing else []
    progress.finish(
        f"warning: {warnings[0]}" if warnings else f"{model} has the bundle's architecture"
    )
    if digests:
        warnings += _compare_files(bundle, checkpoint, model, threads, progress)
    return Compared(checkpoint, tuple(warnings))


def _require_shapes(own: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse a reference whose shapes differ; a key that the bundle does not have is passed."""
    for key in SHAPE_KEYS:
        if key in own and own[key] != other[key]:
            raise CheckpointError(
                f"--reference has {key} {other[key]}, the bundle's model {own[key]}",
                "Give the checkpoint that the bundle was built from",
            )


def _compare_files(
    bundle: Bundle, checkpoint: Checkpoint, model: str, threads: int, progress: Progress
) -> list[str]:
    """Return what differs from the files that the bundle was built from."""
    built = {entry.path: entry.sha256 for entry in bundle.manifest.checkpoint_files}
    found = {path.name: path for path in checkpoint.files}
    progress.start("compare", sum(_size(path) for path in found.values()))
    try:
        digests = dict(hash_files(found, threads=threads, progress=progress))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    changed = sorted(name for name, digest in digests.items() if built.get(name) != digest)
    # An adapter's files, most likely: what it added is measured as if quantization had done it.
    missing = sorted(built.keys() - found.keys())
    warnings = []
    if changed:
        warnings.append(f"{model} is not what the bundle was built from: {_some(changed)} differ")
    if missing:
        warnings.append(f"the bundle was also built from {_some(missing)}, which {model} lacks")
    progress.finish(
        f"warning: {'; '.join(warnings)}" if warnings else "the files the bundle was built from"
    )
    return warnings


def _size(path: Path) -> int:
    with read_errors(path):
        return path.stat().st_size


def _some(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
