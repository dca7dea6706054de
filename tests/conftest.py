"""Options of the tests, and the bundle that many of them serve."""

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


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the trained example, built once; who changes one makes a copy."""
    from serve_cases import build_example  # what needs no server needs not its packages

    return build_example(tmp_path_factory.mktemp("example"))


def _checkpoint(text: str) -> Path:
    path = Path(text).expanduser().resolve()
    if not (path / "config.json").is_file():
        raise pytest.UsageError(f"--checkpoint {text}: no checkpoint, config.json is missing there")
    return path
