"""Options of the tests; without any, nothing here changes what runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import Postgres


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that the tests of a run share; each takes a database of its own."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()
