"""Files of calibration and evaluation data: plain text, and rows as JSON lines.

Both come from the user: sizes are limited, and what is wrong is named by file and line. Which keys
a row has is the caller's business.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import CalibrationError
from edgekit.units import MIB

MAX_LINE_BYTES = 4 * MIB
MAX_FILE_BYTES = 256 * MIB
"""Most that is read of a file; a calibration set is some hundred kilobytes."""


def read_text(path: Path) -> str:
    """Return a plain text with line feeds for line ends, and without a byte order mark.

    Raises:
        CalibrationError: It cannot be read, is too large or not UTF-8.
    """
    with _read_errors(path):
        _require_size(path, path.stat().st_size)
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise CalibrationError(
                f"{path} is not UTF-8 at byte {error.start}", "Convert it"
            ) from error


def read_json_lines(
    path: Path, remedy: str, limit: int | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the rows of a file of JSON lines, each with ``file:line``; blank lines are skipped.

    Args:
        path: One JSON object a line, UTF-8.
        remedy: The form of a row, for errors.
        limit: Most rows to take; what follows them is not read.

    Raises:
        CalibrationError: It cannot be read, is too large, has no rows, or a line is not an object.
    """
    rows: list[tuple[str, dict[str, Any]]] = []
    read_bytes = 0
    with _read_errors(path), path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(rows) == limit:
                break
            read_bytes += len(line)
            _require_size(path, read_bytes)
            if line.strip() or len(line) > MAX_LINE_BYTES:
                where = f"{path}:{number}"
                rows.append((where, _parse(line, where, remedy)))
    if not rows:
        raise CalibrationError(f"{path} has no rows", remedy)
    return rows


def text_field(
    row: Mapping[str, Any], key: str, where: str, remedy: str, default: str | None = None
) -> str:
    """Return a row's text.

    Args:
        row: The row.
        key: What it is called.
        where: What to call the row in errors.
        remedy: The form of a row, for errors.
        default: Stands for a missing key, and lets the text be blank.

    Raises:
        CalibrationError: It is missing or blank without a default, or not a string.
    """
    value = row.get(key, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        state = "has a wrong value for" if key in row else "lacks"
        raise CalibrationError(f"{where} {state} {key!r}", remedy)
    return value


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CalibrationError(
            f"cannot read {path}: {error.strerror or error}", "Give a readable text file"
        ) from error


def _require_size(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_FILE_BYTES:
        raise CalibrationError(
            f"{path} is larger than the {MAX_FILE_BYTES} bytes edgekit reads",
            "Give a part of it: some hundred kilobytes are enough",
        )


def _parse(line: bytes, where: str, remedy: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise CalibrationError(f"{where} is longer than {MAX_LINE_BYTES} bytes", remedy)
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{where} is not UTF-8 at byte {error.start}", remedy) from error
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where} is not JSON: {error}", remedy) from error
    if not isinstance(row, dict):
        raise CalibrationError(f"{where} is not a JSON object", remedy)
    return row
