"""Calibration files: every documented form is read, every other is refused by line number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import CalibrationError
from edgekit.quant.calibration import load_calibration


class Bytes:
    """A tokenizer of bytes."""

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        del add_special
        return list(text.encode())


def template(messages: Any) -> str:
    return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant><think>\n"


def decode(windows: np.ndarray[Any, Any]) -> str:
    return bytes(windows.astype(np.uint8).ravel().tolist()).decode()


def load(path: Path, **options: Any) -> Any:
    return load_calibration(path, Bytes(), **{"tokens": 64, "window": 16, **options})


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_keeps_its_order(tmp_path: Path) -> None:
    """A .txt file that is no longer than wanted becomes its own windows, in order."""
    path = tmp_path / "a.txt"
    path.write_text("0123456789abcdefghijklmnopqrstuvwxyz")
    data = load(path)
    assert decode(data.windows) == "0123456789abcdefghijklmnopqrstuv"
    assert data.windows.dtype == np.int64
    assert data.source_tokens == 36


@pytest.mark.parametrize("segments", [None, (2, 5)])
def test_same_seed_same_windows(tmp_path: Path, segments: tuple[int, int] | None) -> None:
    """The seed decides the windows and the digest names them."""
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(33 + i % 90) for i in range(999)))
    first, again, other = (load(path, seed=s, segment_tokens=segments) for s in (1, 1, 2))
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.windows, again.windows)
    assert first.digest != other.digest
    assert first.windows.shape == other.windows.shape == (4, 16)


def test_segments_come_from_the_text(tmp_path: Path) -> None:
    """Mixed windows are made of runs of the text, and a short text is enough to fill them."""
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz")
    data = load(path, tokens=160, segment_tokens=(4, 8))
    steps = np.diff(data.windows.ravel())
    assert data.windows.size == 160
    assert 0.7 < np.mean(steps == 1) < 1.0


def test_reasoning_rows_get_the_models_form(tmp_path: Path) -> None:
    """prompt/reasoning/answer rows are rendered as the model itself would write them."""
    row = {"prompt": "1+1?", "reasoning": "one more", "answer": "2"}
    path = write_rows(tmp_path / "a.jsonl", row)
    data = load(path, render=template, window=16, tokens=64)
    text = "<user>1+1?<assistant><think>\none more\n</think>\n\n2"
    assert decode(data.windows) == text[: len(text) // 16 * 16]


def test_message_rows_do_not_open_reasoning_twice(tmp_path: Path) -> None:
    """An assistant's message that brings its own <think> does not repeat the template's."""
    messages = [
        {"role": "user", "content": "hello there"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello to you"},
    ]
    path = write_rows(tmp_path / "a.jsonl", {"messages": messages})
    data = load(path, render=template, window=16, tokens=64)
    assert decode(data.windows).count("<think>") == 1


def test_rows_without_a_template_are_joined(tmp_path: Path) -> None:
    """A base model without a template calibrates on the bare text of all row forms."""
    path = write_rows(
        tmp_path / "a.jsonl",
        {"text": "first row;"},
        {"prompt": "q?", "answer": "a!"},
        {"messages": [{"role": "user", "content": "message"}]},
    )
    data = load(path)
    assert decode(data.windows) == "first row;q?\na!\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "ok"}\nnot json\n', ":2 is not JSON"),
        ("[1, 2]\n", ":1 is not a JSON object"),
        ('{"question": "x"}\n', ":1 has none of text, messages and prompt"),
        ('{"prompt": "x"}\n', ":1 lacks 'answer'"),
        ('{"text": 5}\n', ":1 has a wrong value for 'text'"),
        ('{"messages": []}\n', ":1 has no list"),
        ('{"messages": [{"role": "user"}]}\n', ":1 lacks 'content'"),
        ("\n\n", "has no rows"),
        ('{"text": "short"}\n', "less than one window"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, content: str, words: str) -> None:
    """A row of another form is refused with its line number and the expected forms."""
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(CalibrationError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    """A missing file, another suffix and bytes that are not UTF-8 are one-line errors."""
    with pytest.raises(CalibrationError, match="cannot read"):
        load(tmp_path / "none.txt")
    with pytest.raises(CalibrationError, match="neither"):
        load(tmp_path / "data.csv")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 40)
    with pytest.raises(CalibrationError, match="not UTF-8"):
        load(tmp_path / "b.txt")


def test_a_base_models_rows_begin_with_its_bos(tmp_path: Path) -> None:
    """Without a chat template every row begins as the model was trained; with one, none does."""

    class WithBos(Bytes):
        def encode(self, text: str, *, add_special: bool = False) -> list[int]:
            return [999] * add_special + super().encode(text)

    path = write_rows(tmp_path / "c.jsonl", {"text": "a" * 31}, {"text": "b" * 31})
    base = load_calibration(path, WithBos(), tokens=64, window=16)
    assert base.windows.ravel().tolist() == [999, *[97] * 31, 999, *[98] * 31]
    chat = load_calibration(path, WithBos(), tokens=48, window=16, render=template)
    assert 999 not in chat.windows
