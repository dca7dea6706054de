"""Options of the tests; without any, nothing here changes what runs."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--checkpoint``, for models that are too large for the repository."""
    parser.addoption(
        "--checkpoint",
        action="append",
        default=[],
        type=_checkpoint,
        metavar="DIR",
        help="hold the graphs of this checkpoint to transformers, too; may be given several times",
    )


def _checkpoint(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise pytest.UsageError(f"--checkpoint {text}: no checkpoint, config.json is missing there")
    return path
