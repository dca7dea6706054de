"""Exact match: rows of the right form, answers compared, nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EXAMPLE

from edgekit.errors import CalibrationError
from edgekit.evaluate.exact_match import (
    EncodedPrompt,
    EvalRow,
    answer_of,
    chat_encoder,
    evaluate_exact_match,
    read_rows,
)
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.tokenizer import Tokenizer

GOOD = {"prompt": "1 + 1?", "reasoning": "easy", "answer": "2"}
DATA = Path(__file__).parents[2] / "data"
END = 0


class EchoSession:
    """Writes, after a prompt of one token t, the script of t, then the end token."""

    max_context = 64
    max_sequences = 2
    vocab_size = 256

    def __init__(self, scripts: Sequence[str]) -> None:
        self.scripts = [[*script.encode(), END] for script in scripts]
        self.slots: dict[int, int] = {}

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> np.ndarray:
        assert (start, all_logits, len(tokens)) == (0, False, 1)
        self.slots[slot] = tokens[0]
        return self._logits(slot, 0)

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> np.ndarray:
        assert len(tokens) == len(slots)
        return np.stack([self._logits(s, at) for s, at in zip(slots, positions, strict=True)])

    def release(self, slot: int) -> None:
        del self.slots[slot]

    def close(self) -> None:
        raise AssertionError

    def _logits(self, slot: int, step: int) -> np.ndarray:
        return np.asarray(np.eye(256, dtype=np.float32)[self.scripts[self.slots[slot]][step]])


def ask(scripts: list[str], answers: list[str], **options: Any) -> dict[str, float | int]:
    rows = [EvalRow(str(i), "", answer) for i, answer in enumerate(answers)]
    result = evaluate_exact_match(
        EchoSession(scripts),
        rows,
        encode_chat=lambda prompt: EncodedPrompt([int(prompt)], in_reasoning=True),
        decode=lambda ids: bytes(ids).decode(),
        eos_ids=[END],
        **options,
    )
    return result.to_dict()


def test_only_the_answer_counts() -> None:
    """Reasoning and outer white space are ignored; anything else in the answer is not."""
    scripts = ["x</think>\n\n 2 \n", "y</think>2", "z</think>2.", "never 2", "</think>"]
    assert ask(scripts, ["2", " 2\n", "2", "never 2", "2"]) == {
        "exact_match": 0.4,
        "exact_match_count": 2,
        "total": 5,
        "unfinished_count": 0,
    }


def test_a_cut_answer_is_counted_as_unfinished() -> None:
    """An answer cut by the token limit is wrong and reported as cut."""
    report = ask(["r</think>long answer"], ["long answer"], max_new_tokens=12)
    assert (report["exact_match_count"], report["unfinished_count"]) == (0, 1)


@pytest.mark.parametrize(
    ("text", "in_reasoning", "answer"),
    [
        ("a</think> b ", True, "b"),
        ("<think>a</think>b", False, "b"),
        ("b", False, "b"),
        ("never closed", True, None),
        ("<think>never closed", False, None),
        ("a</think>b</think>", True, "b</think>"),
        ("", True, None),
    ],
)
def test_answer_of(text: str, in_reasoning: bool, answer: str | None) -> None:  # noqa: FBT001
    """The answer is what follows the reasoning; there is none while the reasoning is open."""
    assert answer_of(text, in_reasoning=in_reasoning) == answer


def test_rows_are_read(tmp_path: Path) -> None:
    """Rows are read in order, blank lines skipped, reasoning optional, other keys ignored."""
    path = tmp_path / "rows.jsonl"
    second = {"prompt": "ü", "answer": "x", "more": 1}
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(second, ensure_ascii=False)}", "utf-8")
    assert read_rows(path) == [EvalRow("1 + 1?", "easy", "2"), EvalRow("ü", "", "x")]
    assert read_rows(path, limit=1) == [EvalRow("1 + 1?", "easy", "2")]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[1]", "is not a JSON object"),
        (b'{"prompt": "x"}', "lacks 'answer'"),
        (b'{"answer": "x"}', "lacks 'prompt'"),
        (b'{"prompt": 3, "answer": "x"}', "wrong value for 'prompt'"),
        (b'{"prompt": "x", "answer": ""}', "wrong value for 'answer'"),
        (b'{"prompt": "x", "answer": "y", "reasoning": null}', "wrong value for 'reasoning'"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * (5 << 20) + b"x", "is longer than"),
    ],
)
def test_a_bad_row_names_its_line(tmp_path: Path, line: bytes, cause: str) -> None:
    """A row of another form is one error with the file, the line and the form wanted."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line)
    with pytest.raises(CalibrationError, match=f"rows.jsonl:3 .*{cause}") as caught:
        read_rows(path)
    assert '"prompt"' in caught.value.remedy


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    """An empty or missing file, and an empty list, are errors: there is no fraction of 0."""
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(CalibrationError, match="has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(CalibrationError, match="cannot read"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(CalibrationError, match="no rows"):
        ask([], [])


def test_prompts_use_the_models_template() -> None:
    """A prompt is rendered by the chat template, and said to open the reasoning when it does."""
    tokenizer = Tokenizer.from_folder(EXAMPLE)
    template = ChatTemplate.from_folder(EXAMPLE)
    assert template is not None
    row = read_rows(DATA / "reasoning_dev.jsonl", limit=1)[0]
    prompt = chat_encoder(tokenizer, template)(row.prompt)
    text = tokenizer.decode(prompt.tokens, skip_special=False)
    assert row.prompt in text
    assert text.endswith("<think>\n")
    assert prompt.in_reasoning
