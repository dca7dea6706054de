"""What a build is asked for and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.plan.memory import Fit
from edgekit.recipe import Recipe
from edgekit.targets import Target


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """One ``edgekit build``.

    Attributes:
        model: Local checkpoint folder or hub id.
        out: Bundle folder to make; must not exist unless ``overwrite``.
        revision: Hub revision (commit, tag or branch).
        adapter: PEFT LoRA folder merged into the checkpoint.
        calibration: Data for calibrated recipes (.jsonl or .txt).
        base: Bundle of an earlier version, whose scales are kept where they are as good.
        max_context, max_sequences: Override the recipe's; None keeps them.
        threads: Worker threads; only a calibrated recipe's bytes depend on it.
        device: Where a calibrated recipe runs the model: ``cpu``, ``cuda`` or ``cuda:N``; its bytes
            depend on it.
        check: Judge the stored weights on the golden sequences; `edgekit verify` runs the graphs.
        compile_check: Compile the target's graph with this machine's TensorRT builder.
    """

    model: str
    target: Target
    recipe: Recipe
    out: Path
    revision: str | None = None
    adapter: Path | None = None
    calibration: Path | None = None
    base: Path | None = None
    max_context: int | None = None
    max_sequences: int | None = None
    threads: int = 2
    device: str = "cpu"
    overwrite: bool = False
    check: bool = True
    compile_check: bool = True


@dataclass(frozen=True, slots=True)
class Update:
    """A build against the bundle it is an update of.

    Attributes:
        base: Digest of that bundle, hex.
        scales: Scales of the new bundle.
        kept_scales: How many of them are the base's.
        transfer_bytes: What a device that holds the base fetches, tensor by tensor.
    """

    base: str
    scales: int
    kept_scales: int
    transfer_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "base": f"sha256:{self.base}",
            "scales": self.scales,
            "kept_scales": self.kept_scales,
            "transfer_bytes": self.transfer_bytes,
        }


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished bundle.

    Attributes:
        path: Its folder.
        digest: sha256 of its manifest, hex.
        name: Its name.
        recipe: The recipe's name.
        total_bytes: All files together.
        fit: Predicted memory on the target.
        quality: The manifest's quality report.
        max_context: Tokens a sequence can hold.
        max_sequences: Sequences decoded at once.
        compile_check: The manifest's findings of the compile check.
        update: What the update from the base costs; None without one.
    """

    path: Path
    digest: str
    name: str
    recipe: str
    target: str
    total_bytes: int
    fit: Fit
    quality: dict[str, Any]
    max_context: int
    max_sequences: int
    compile_check: dict[str, Any]
    update: Update | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (``docs/schemas/build.schema.json``)."""
        return {
            "bundle": str(self.path),
            "digest": f"sha256:{self.digest}",
            "name": self.name,
            "recipe": self.recipe,
            "target": self.target,
            "full_bytes": self.total_bytes,
            "bits_per_linear_weight": round(self.fit.bits_per_linear_weight, 4),
            "limits": {"max_context": self.max_context, "max_sequences": self.max_sequences},
            "fit": self.fit.to_dict(),
            "quality": self.quality,
            "compile_check": self.compile_check,
            "update": self.update.to_dict() if self.update else None,
        }
