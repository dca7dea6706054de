"""Data files: what users' editors write is read alike, and too much or unreadable is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekit.contracts import data_files
from edgekit.contracts.data_files import read_json_lines, read_text, text_field
from edgekit.errors import CalibrationError


def rows(path: Path, limit: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    return read_json_lines(path, "the form", limit)


def test_marks_and_line_ends_of_other_systems_are_no_text(tmp_path: Path) -> None:
    """A byte order mark is dropped, and CR LF is one line end: neither is what the author wrote."""
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\n".encode())
    assert read_text(path) == "one\ntwo\n"
    path.write_bytes('\ufeff{"a": 1}\r\n\r\n{"a": 2}'.encode())
    assert rows(path) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]


def test_only_what_is_taken_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of a file of any size can be had; reading on past the limit is refused."""
    monkeypatch.setattr(data_files, "MAX_FILE_BYTES", 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' * 3)
    assert [row for _, row in rows(path, 2)] == [{"a": 1}] * 2
    with pytest.raises(CalibrationError, match=r"a\.jsonl is larger than the 20 bytes"):
        rows(path)
    with pytest.raises(CalibrationError, match="is larger than the 20 bytes"):
        read_text(path)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """Latin-1 is refused with its place: the byte in a text, the line in a file of rows."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xfc"}\n')
    with pytest.raises(CalibrationError, match=r"a\.jsonl:2 is not UTF-8 at byte 7"):
        rows(path)
    with pytest.raises(CalibrationError, match=r"a\.jsonl is not UTF-8 at byte 16"):
        read_text(path)


@pytest.mark.parametrize("value", ["", " \n", 3, None])
def test_a_text_without_a_default_says_something(value: Any) -> None:
    """Blank texts and other types are refused by key; a default lets a text be blank."""
    with pytest.raises(CalibrationError, match="x:1 has a wrong value for 'a'") as caught:
        text_field({"a": value}, "a", "x:1", "the form")
    assert caught.value.remedy == "the form"
    assert text_field({"a": " "}, "a", "x:1", "", default="") == " "
    assert text_field({}, "a", "x:1", "", default="") == ""
