"""How a bundle is loaded; light, for the agent has it before any model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy comes with it
    from edgekit.bundle.reader import Bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Where and how a bundle runs; see ``edgekit serve --help``.

    Attributes:
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt``, or what was chosen: ``auto``.
        fallback: Where to run if TensorRT cannot.
        dialect: Which of the bundle's graphs to run.
        threads: CPU threads; None is all cores.
        max_sequences: Requests that generate at once; None is the bundle's number.
        digests: Check the bundle's bytes before it is loaded.
        memory_check: Refuse a bundle that needs more memory than may be taken.
    """

    provider: str = "cpu"
    fallback: str | None = None
    dialect: str | None = None
    threads: int | None = None
    max_sequences: int | None = None
    digests: bool = True
    memory_check: bool = True

    def slots(self, bundle: Bundle) -> int:
        """Return the cache slots that a bundle gets."""
        return self.max_sequences or int(bundle.manifest.limits["max_sequences"])
