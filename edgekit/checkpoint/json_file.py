"""Small JSON files of a checkpoint, read with a size limit and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.errors import CheckpointError

MAX_JSON_BYTES = 32 * 1024 * 1024


def read_json(path: Path, limit_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the object a JSON file holds.

    Raises:
        CheckpointError: Missing, unreadable, too large, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > limit_bytes:
            raise CheckpointError(f"{path.name} is larger than {limit_bytes} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "Point MODEL at a Hugging Face checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data
