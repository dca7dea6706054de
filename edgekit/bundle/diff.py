"""What changed between two bundles, and what a device that holds the first would fetch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.contracts.manifest import TensorEntry


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor that differs: ``added``, ``removed`` or ``changed``."""

    name: str
    change: str
    old_bytes: int
    new_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "change": self.change,
            "old_bytes": self.old_bytes,
            "new_bytes": self.new_bytes,
        }


@dataclass(frozen=True, slots=True)
class BundleDiff:
    """The difference from bundle A to bundle B.

    Attributes:
        full_bytes: Everything B consists of.
        transfer_bytes: What a device that holds A fetches: blobs A lacks, changed files, manifest.
        tensors: Tensors that differ, largest new bytes first.
        same_tensors: Number of tensors whose bytes are the same.
        files: Plain files that differ or are new in B.
        fields: Manifest fields whose value differs (``recipe``, ``quality``, ...).
    """

    full_bytes: int
    transfer_bytes: int
    tensors: tuple[TensorChange, ...]
    same_tensors: int
    files: tuple[str, ...]
    fields: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (``docs/schemas/diff.schema.json``)."""
        ratio = self.transfer_bytes / self.full_bytes
        return {
            "full_bytes": self.full_bytes,
            "transfer_bytes": self.transfer_bytes,
            "transfer_ratio": round(ratio, 6),
            "same_tensors": self.same_tensors,
            "tensors": [change.to_dict() for change in self.tensors],
            "files": list(self.files),
            "fields": list(self.fields),
        }


_COMPARED = (
    "name", "model", "checkpoint_files", "recipe", "target", "requirements", "limits", "tools",
    "graphs", "f16_exponents", "golden", "quality", "size", "engine_plans",
    "compile_check",
)  # fmt: skip


def diff_bundles(a: Bundle, b: Bundle) -> BundleDiff:
    """Compare two bundles by their manifests; blobs are compared by digest."""
    if a.digest == b.digest:
        return BundleDiff(b.total_bytes, 0, (), len(b.manifest.tensors), (), ())
    old = {entry.name: entry for entry in a.manifest.tensors}
    new = {entry.name: entry for entry in b.manifest.tensors}
    changes = [_change(name, old.get(name), new.get(name)) for name in {*old, *new}]
    differing = [change for change in changes if change is not None]
    held = {entry.sha256 for entry in old.values()} | {f.sha256 for f in a.manifest.files}
    fetched = {entry.sha256: entry.size_bytes for entry in new.values()}
    fetched |= {entry.sha256: entry.size_bytes for entry in b.manifest.files}
    transfer = sum(size for digest, size in fetched.items() if digest not in held)
    old_files = {entry.path: entry.sha256 for entry in a.manifest.files}
    before, after = a.manifest.to_dict(), b.manifest.to_dict()
    return BundleDiff(
        full_bytes=b.total_bytes,
        transfer_bytes=transfer + len(b.manifest.to_bytes()),
        tensors=tuple(sorted(differing, key=lambda c: (-c.new_bytes, c.name))),
        same_tensors=len(new) - sum(c.change != "removed" for c in differing),
        files=tuple(e.path for e in b.manifest.files if old_files.get(e.path) != e.sha256),
        fields=tuple(name for name in _COMPARED if before[name] != after[name]),
    )


def _change(name: str, old: TensorEntry | None, new: TensorEntry | None) -> TensorChange | None:
    if old is not None and new is not None and old.sha256 == new.sha256:
        return None
    kind = "added" if old is None else "removed" if new is None else "changed"
    return TensorChange(name, kind, old.size_bytes if old else 0, new.size_bytes if new else 0)
