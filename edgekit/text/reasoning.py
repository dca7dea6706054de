"""Splits what a model writes into its reasoning and its answer.

R1-style models think between ``<think>`` and ``</think>`` before they answer. DeepSeek's
templates end the prompt in ``<think>`` and a line break, so the opening tag is never generated
there; older templates leave it to the model. The tags are removed; every other character comes
out exactly once, in order, whatever the chunks it came in.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

THINK_OPEN: Final = "<think>"
THINK_CLOSE: Final = "</think>"

_State = Literal["start", "reasoning_start", "reasoning", "answer"]


class TextPiece(NamedTuple):
    """Some generated text, and which of the two it belongs to."""

    text: str
    is_reasoning: bool


def prompt_opens_reasoning(prompt: str) -> bool:
    """Say whether generation begins inside the reasoning: the prompt ends in ``<think>``."""
    return prompt.rstrip().endswith(THINK_OPEN)


class ReasoningSplitter:
    """A streaming splitter; feed it text, then :meth:`finish`.

    An opening tag counts only before anything but white space has been written, and a closing
    tag only inside the reasoning and once: an answer may speak of ``<think>``. A repeated
    opening tag right after the prompt's own is dropped.

    Args:
        in_reasoning: True when the prompt opened the reasoning already
            (:func:`prompt_opens_reasoning`).
    """

    def __init__(self, *, in_reasoning: bool = False) -> None:
        self._state: _State = "reasoning_start" if in_reasoning else "start"
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        """True while the text fed so far ends inside the reasoning."""
        return self._state in {"reasoning", "reasoning_start"}

    @property
    def in_answer(self) -> bool:
        """True once the answer has begun: nothing that follows can be reasoning."""
        return self._state == "answer"

    def feed(self, text: str) -> list[TextPiece]:
        """Return the pieces that ``text`` settles; a possible part of a tag is held back."""
        self._held += text
        pieces: list[TextPiece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[TextPiece]:
        """Return what is held back (an unfinished tag is text after all)."""
        pieces: list[TextPiece] = []
        self._emit(pieces, len(self._held))
        return pieces

    def _step(self, pieces: list[TextPiece]) -> bool:
        """Settle what can be settled; True when the state changed and more may follow."""
        if self._state == "answer":
            self._emit(pieces, len(self._held))
            return False
        if self._state == "reasoning":
            return self._find_close(pieces)
        return self._find_open(pieces)

    def _find_open(self, pieces: list[TextPiece]) -> bool:
        body = self._held.lstrip()
        if len(body) < len(THINK_OPEN) and THINK_OPEN.startswith(body):
            return False  # only white space and perhaps the start of a tag: not settled
        opened = body.startswith(THINK_OPEN)
        inside = opened or self._state == "reasoning_start"
        if opened:
            space = len(self._held) - len(body)
            self._held = self._held[:space] + body[len(THINK_OPEN) :]
        self._state = "reasoning" if inside else "answer"
        return self._step(pieces)

    def _find_close(self, pieces: list[TextPiece]) -> bool:
        at = self._held.find(THINK_CLOSE)
        if at < 0:
            self._emit(pieces, len(self._held) - partial_match(self._held, THINK_CLOSE))
            return False
        self._emit(pieces, at)
        self._held = self._held[len(THINK_CLOSE) :]
        self._state = "answer"
        return True

    def _emit(self, pieces: list[TextPiece], count: int) -> None:
        if count:
            pieces.append(TextPiece(self._held[:count], self.in_reasoning))
            self._held = self._held[count:]


def partial_match(text: str, target: str) -> int:
    """Return how many last characters of ``text`` begin ``target`` without completing it."""
    for count in range(min(len(target) - 1, len(text)), 0, -1):
        if target.startswith(text[-count:]):
            return count
    return 0
