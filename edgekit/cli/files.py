"""Files that a command writes beside what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import StorageError


def require_folder(path: Path) -> None:
    """Refuse a file in a folder that is not there: a name misspelt is more likely than meant.

    Raises:
        StorageError: The folder is not there.
    """
    if not path.parent.is_dir():
        raise StorageError(
            f"cannot write {path}: there is no folder {path.parent}", "Make it, or choose another"
        )


def write_plot(path: Path, drawn: bytes) -> None:
    """Write a plot into a file, which is whole or as it was.

    Raises:
        StorageError: It cannot be written.
    """
    from edgekit.bundle.storage import write_atomic  # noqa: PLC0415 - heavy

    require_folder(path)
    write_atomic(path, drawn, option="--plot")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a document into a file, which is whole or as it was.

    Raises:
        StorageError: It cannot be written.
        ValueError: A figure is NaN or infinite, which JSON has no word for.
    """
    from edgekit.bundle.storage import write_atomic  # noqa: PLC0415 - heavy

    require_folder(path)
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode(), option="--json")
