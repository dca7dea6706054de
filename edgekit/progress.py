"""How long work reports that it advances: a callback protocol, never a print.

The command line draws it with rich (``edgekit.cli.render``); tests and libraries pass
:data:`SILENT`.
"""

from __future__ import annotations

from typing import Protocol

BYTES = "bytes"
"""Unit of most stages; others count ``tokens`` or ``prompts``."""


class Progress(Protocol):
    """What a stage of the pipeline tells its caller."""

    def start(self, stage: str, total: int, unit: str = BYTES) -> None:
        """A stage begins; ``total`` of ``unit`` will pass through it (0: unknown)."""

    def advance(self, done: int, item: str = "") -> None:
        """``done`` more have passed; ``item`` names what is being worked on.

        Any thread may call it.
        """

    def finish(self, summary: str = "") -> None:
        """The stage is done; ``summary`` is one short line for a person."""


class _Silent:
    def start(self, stage: str, total: int, unit: str = BYTES) -> None:
        del stage, total, unit

    def advance(self, done: int, item: str = "") -> None:
        del done, item

    def finish(self, summary: str = "") -> None:
        del summary


SILENT: Progress = _Silent()
