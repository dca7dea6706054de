"""Calibration data: a text or chat file becomes windows of token ids.

Reads ``.txt``, and ``.jsonl`` with rows of three forms: ``{"prompt", "reasoning", "answer"}``,
``{"text"}`` and ``{"messages": [{"role", "content"}, ...]}``. What it does not do: render chat
templates (the caller gives a function) or touch torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.contracts.data_files import read_json_lines, read_text, text_field
from edgekit.errors import CalibrationError

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]
"""Messages to the prompt text that opens the assistant's turn."""

MIN_WINDOW = 16

_REMEDY = (
    'Each line is a JSON object of one of the forms {"prompt": "...", "reasoning": "...", '
    '"answer": "..."}, {"text": "..."} or {"messages": [{"role": "...", "content": "..."}]}'
)


class TextEncoder(Protocol):
    """What is needed of a tokenizer; ``edgekit.text.tokenizer.Tokenizer`` has it."""

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return the ids of ``text``."""


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Windows of token ids to calibrate on.

    Attributes:
        windows: int64 [n, window].
        digest: sha256 of the windows' shape and little-endian ids, in hex: two builds of one
            digest calibrate on the same tokens.
        source_tokens: Tokens the file has; more than ``windows.size`` when some were left out.
    """

    windows: npt.NDArray[np.int64]
    digest: str
    source_tokens: int


def load_calibration(
    path: Path,
    tokenizer: TextEncoder,
    *,
    tokens: int = 32768,
    window: int = 512,
    seed: int = 0,
    segment_tokens: tuple[int, int] | None = None,
    render: Render | None = None,
) -> CalibrationSet:
    """Read a calibration file and cut windows from it.

    Args:
        path: ``.txt`` or ``.jsonl``, UTF-8.
        tokenizer: The model's.
        tokens: Tokens wanted, rounded down to whole windows. A shorter file gives what it has,
            unless segments are mixed.
        window: Tokens of one sequence.
        seed: Chooses the windows (or segments) where there are more than wanted.
        segment_tokens: None keeps the text's order. ``(low, high)`` fills the windows with
            segments of that many tokens from random places of the text: for a text the model has
            been trained on, whose continuations it knows by heart and which would otherwise show
            it only at its most certain.
        render: Chat template for ``prompt`` and ``messages`` rows; None (a base model) joins them
            by newlines, and begins each row's text, or the whole of a ``.txt``, with the
            tokenizer's BOS.

    Raises:
        CalibrationError: The file is unreadable, too short or of another form; a message about a
            row names its line.
    """
    _check_sizes(tokens, window)
    stream = _token_stream(path, tokenizer, window, render)
    rng = np.random.default_rng(seed)
    if segment_tokens is None:
        windows = _windows(stream, tokens, window, rng)
    else:
        windows = _mixed(stream, tokens, window, segment_tokens, rng)
    return CalibrationSet(windows, _digest(windows), int(stream.size))


def _check_sizes(tokens: int, window: int) -> None:
    if window < MIN_WINDOW or tokens < window:
        raise CalibrationError(
            f"cannot cut {tokens} calibration tokens into windows of {window}",
            f"Use a window of at least {MIN_WINDOW} tokens and at least one window of tokens",
        )


def _token_stream(
    path: Path, tokenizer: TextEncoder, window: int, render: Render | None
) -> npt.NDArray[np.int64]:
    """Return the tokens of all texts of a file, one after the other; a window at least."""
    texts = _read_texts(path, render)
    base = render is None
    stream = np.concatenate(
        [np.array(tokenizer.encode(text, add_special=base), np.int64) for text in texts]
    )
    if stream.size < window:
        raise CalibrationError(
            f"{path} has {stream.size} tokens, less than one window of {window}",
            "Use more text or a smaller window",
        )
    return stream


def _digest(windows: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(f"{windows.shape}".encode())
    digest.update(np.ascontiguousarray(windows, "<i8").tobytes())
    return digest.hexdigest()


def _windows(
    stream: npt.NDArray[np.int64], tokens: int, window: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Return windows in the text's order, a random choice of them when there are more."""
    whole = stream[: stream.size // window * window].reshape(-1, window)
    wanted = tokens // window
    if len(whole) <= wanted:
        return whole
    return whole[np.sort(rng.choice(len(whole), wanted, replace=False))]


def _mixed(
    stream: npt.NDArray[np.int64],
    tokens: int,
    window: int,
    segment: tuple[int, int],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Return windows made of random segments of the text."""
    low, high = segment
    if not 1 <= low <= high <= window:
        raise CalibrationError(f"cannot mix segments of {low} to {high} tokens into {window}")
    total = tokens // window * window
    parts: list[npt.NDArray[np.int64]] = []
    filled = 0
    while filled < total:
        length = int(rng.integers(low, high + 1))
        start = int(rng.integers(0, stream.size - length + 1))
        parts.append(stream[start : start + length])
        filled += length
    return np.concatenate(parts)[:total].reshape(-1, window)


def _read_texts(path: Path, render: Render | None) -> list[str]:
    if path.suffix == ".txt":
        return [read_text(path)]
    if path.suffix != ".jsonl":
        raise CalibrationError(
            f"calibration file {path} is neither .txt nor .jsonl", "Give one of these"
        )
    return [_row_text(row, where, render) for where, row in read_json_lines(path, _REMEDY)]


def _row_text(row: Mapping[str, Any], where: str, render: Render | None) -> str:
    if "text" in row:
        return text_field(row, "text", where, _REMEDY)
    if "messages" in row:
        return _conversation(_messages(row["messages"], where), render)
    if "prompt" in row:
        return _reasoned(row, where, render)
    raise CalibrationError(f"{where} has none of text, messages and prompt", _REMEDY)


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        raise CalibrationError(f"{where} has no list of objects as 'messages'", _REMEDY)
    return [{key: text_field(m, key, where, _REMEDY) for key in ("role", "content")} for m in value]


def _conversation(messages: list[dict[str, str]], render: Render | None) -> str:
    """Return a conversation as the model would have seen and written it."""
    if render is None:
        return "\n".join(message["content"] for message in messages) + "\n"
    if messages[-1]["role"] != "assistant":
        return render(messages)
    return _continue(render(messages[:-1]), messages[-1]["content"])


def _continue(prompt: str, reply: str) -> str:
    """Append a reply; one that opens its own reasoning replaces the prompt's opening."""
    opening = "<think>"
    if reply.lstrip().startswith(opening) and prompt.rstrip().endswith(opening):
        return prompt.rstrip().removesuffix(opening) + reply.lstrip()
    return prompt + reply


def _reasoned(row: Mapping[str, Any], where: str, render: Render | None) -> str:
    question, answer = (text_field(row, key, where, _REMEDY) for key in ("prompt", "answer"))
    reasoning = text_field(row, "reasoning", where, _REMEDY, default="")
    return reasoned_text(question, reasoning, answer, render)


def reasoned_text(question: str, reasoning: str, answer: str, render: Render | None) -> str:
    """Return an evaluation-style row in R1's form: reasoning, ``</think>``, answer.

    Some templates open the reasoning and some leave that to the model, which opens it only when
    it reasons.

    Args:
        question: What the user says.
        reasoning: What the model thinks; may be empty.
        answer: What it answers.
        render: Chat template; None joins the parts by newlines.
    """
    if render is None:
        return "\n".join(part for part in (question, reasoning, answer) if part) + "\n"
    prompt = render([{"role": "user", "content": question}])
    if prompt.rstrip().endswith("<think>"):
        return f"{prompt}{reasoning}\n</think>\n\n{answer}"
    return prompt + (f"<think>\n{reasoning}\n</think>\n\n" if reasoning else "") + answer
