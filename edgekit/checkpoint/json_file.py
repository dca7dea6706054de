"""Small JSON files of a checkpoint, read with a size limit and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.checkpoint.files import contained_file, read_errors
from edgekit.errors import CheckpointError

MAX_JSON_BYTES = 32 * 1024 * 1024


def read_json(path: Path, limit_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object a JSON file of a checkpoint folder holds.

    Raises:
        CheckpointError: Missing, a link out of its folder, unreadable, too large, not JSON, or not
            an object.
    """
    found = find_json(path, limit_bytes)
    if found is None:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "Point MODEL at a Hugging Face checkpoint"
        )
    return found


def find_json(path: Path, limit_bytes: int = MAX_JSON_BYTES) -> dict[str, Any] | None:
    """Return the object a JSON file holds, as :func:`read_json` does; None when it is not there.

    Raises:
        CheckpointError: As :func:`read_json`, but for a missing file.
    """
    if contained_file(path.parent, path.name) is None:
        return None
    with read_errors(path):
        if path.stat().st_size > limit_bytes:
            raise CheckpointError(f"{path.name} is larger than {limit_bytes} bytes")
        content = path.read_bytes()
    try:
        # Some editors begin UTF-8 with a byte order mark. A ValueError that is no JSONDecodeError
        # is an integer of thousands of digits.
        data = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data
