"""Exact match: does the model, decoding greedily, give the expected answer to each prompt?

Evaluation and calibration rows are JSON lines of ``prompt``, ``reasoning`` and ``answer``. Only
the answer, what stands after ``</think>``, is compared; white space around it does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edgekit.contracts.data_files import read_json_lines, text_field
from edgekit.engine.session import InferenceSession
from edgekit.errors import CalibrationError
from edgekit.evaluate.greedy import Completion, greedy_completions
from edgekit.progress import SILENT, Progress
from edgekit.text.chat_template import ChatTemplate
from edgekit.text.reasoning import ReasoningSplitter, prompt_opens_reasoning
from edgekit.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 512
_REMEDY = 'Each line is a JSON object: {"prompt": "...", "reasoning": "...", "answer": "..."}'


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One row of an evaluation or calibration file; ``reasoning`` may be empty."""

    prompt: str
    reasoning: str
    answer: str


class EncodedPrompt(NamedTuple):
    """A prompt rendered by the chat template, and whether it opens the reasoning."""

    tokens: list[int]
    in_reasoning: bool


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a model made of one row; ``got`` is None when it never closed its reasoning."""

    row: EvalRow
    got: str | None
    generated_tokens: int
    finished: bool

    @property
    def correct(self) -> bool:
        """Whether the answer is the expected one."""
        return self.got is not None and self.got == self.row.answer.strip()


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Results of a whole file."""

    rows: tuple[RowResult, ...]

    @property
    def total(self) -> int:
        """Rows asked."""
        return len(self.rows)

    @property
    def correct(self) -> int:
        """Rows answered as expected."""
        return sum(row.correct for row in self.rows)

    def to_dict(self) -> dict[str, float | int]:
        """Return the JSON form; ``exact_match`` is a fraction of 1."""
        return {
            "exact_match": self.correct / self.total,
            "exact_match_count": self.correct,
            "total": self.total,
            "unfinished_count": sum(not row.finished for row in self.rows),
        }


def read_rows(path: Path, limit: int | None = None) -> list[EvalRow]:
    """Read the rows of a ``.jsonl`` file; blank lines are skipped.

    Args:
        path: UTF-8 JSON lines.
        limit: Rows to read at most.

    Raises:
        CalibrationError: The file cannot be read, has no rows, or a line has another form.
    """
    rows = read_json_lines(path, _REMEDY, limit)
    return [_row(row, where) for where, row in rows]


def chat_encoder(tokenizer: Tokenizer, template: ChatTemplate) -> Callable[[str], EncodedPrompt]:
    """Return a function that turns a user's message into the prompt of a chat model."""

    def encode(prompt: str) -> EncodedPrompt:
        text = template.render([{"role": "user", "content": prompt}])
        return EncodedPrompt(tokenizer.encode(text), prompt_opens_reasoning(text))

    return encode


def evaluate_exact_match(
    session: InferenceSession,
    rows: Sequence[EvalRow],
    *,
    encode_chat: Callable[[str], EncodedPrompt],
    decode: Callable[[Sequence[int]], str],
    eos_ids: Collection[int],
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress = SILENT,
) -> ExactMatch:
    """Answer every row greedily, in all of the engine's slots at once.

    Args:
        session: Any engine.
        rows: What to ask, and the answers.
        encode_chat: Renders and tokenizes a prompt (:func:`chat_encoder`).
        decode: Ids to text, the reasoning tags kept.
        eos_ids: Tokens that end an answer.
        max_new_tokens: A completion that is longer is cut, and its answer most likely wrong.
        progress: Advanced by one for each prompt answered; the caller starts and finishes.

    Raises:
        CalibrationError: There are no rows.
        ContextOverflowError: A prompt does not fit the context.
        EngineError: The engine fails, or the template refuses a prompt.
    """
    if not rows:
        raise CalibrationError("there are no rows to evaluate", _REMEDY)
    prompts = [encode_chat(row.prompt) for row in rows]
    completions = greedy_completions(
        session,
        [prompt.tokens for prompt in prompts],
        eos_ids=eos_ids,
        max_new_tokens=max_new_tokens,
        on_finish=lambda i: progress.advance(1, f"row {i + 1}"),
    )

    def result(row: EvalRow, prompt: EncodedPrompt, completion: Completion) -> RowResult:
        got = answer_of(decode(completion.tokens), in_reasoning=prompt.in_reasoning)
        return RowResult(row, got, len(completion.tokens), completion.finished)

    return ExactMatch(tuple(map(result, rows, prompts, completions)))


def answer_of(text: str, *, in_reasoning: bool) -> str | None:
    """Return what follows the reasoning, stripped; None when the reasoning never ends."""
    splitter = ReasoningSplitter(in_reasoning=in_reasoning)
    pieces = splitter.feed(text)
    if splitter.in_reasoning:
        return None
    pieces += splitter.finish()
    return "".join(piece.text for piece in pieces if not piece.is_reasoning).strip()


def _row(row: Mapping[str, Any], where: str) -> EvalRow:
    return EvalRow(
        text_field(row, "prompt", where, _REMEDY),
        text_field(row, "reasoning", where, _REMEDY, default=""),
        text_field(row, "answer", where, _REMEDY),
    )
