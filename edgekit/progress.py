"""How long work reports that it advances: a callback protocol, never a print.

The command line draws it with rich (``edgekit.cli.render``); tests and libraries pass
:data:`SILENT`.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a stage of the pipeline tells its caller."""

    def start(self, stage: str, total_bytes: int) -> None:
        """A stage begins; ``total_bytes`` of input will pass through it (0: unknown)."""

    def advance(self, done_bytes: int, item: str = "") -> None:
        """``done_bytes`` more have passed; ``item`` names what is being worked on."""

    def finish(self, summary: str = "") -> None:
        """The stage is done; ``summary`` is one short line for a person."""


class _Silent:
    def start(self, stage: str, total_bytes: int) -> None:
        del stage, total_bytes

    def advance(self, done_bytes: int, item: str = "") -> None:
        del done_bytes, item

    def finish(self, summary: str = "") -> None:
        del summary


SILENT: Progress = _Silent()
