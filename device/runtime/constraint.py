"""Holds answers to a grammar: JSON of a schema, or calls of tools, and nothing else.

A grammar begins where the answer does: after ``</think>`` where the model reasons (a grammar laid
over the reasoning puts the answer into it: vllm-project/vllm#15618), or, for tools that may be
called or not, after the text that opens a call. What a token may be is llguidance's to say
(github.com/guidance-ai/llguidance).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final

import llguidance
import numpy as np
import numpy.typing as npt

from device.runtime.faults import GrammarError
from edgekit.errors import EngineError
from edgekit.text.reasoning import THINK_OPEN, ReasoningSplitter
from edgekit.text.tokenizer import Tokenizer

KEPT_GRAMMARS: Final = 32

Float32Array = npt.NDArray[np.float32]


class Grammars:
    """Grammars over one model's tokens; safe to call from any thread.

    Args:
        tokenizer: The model's.
        vocab_size: Width of its logits.
        ends: Tokens that end a generation.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._ends = sorted(ends)
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._tokens: Any = None

    def constrain(
        self, grammar: str, *, in_reasoning: bool = False, trigger: str = ""
    ) -> Constraint:
        """Return what holds one answer to a grammar; takes up to a second the first time.

        Args:
            grammar: In llguidance's dialect of Lark (``device.runtime.grammar``).
            in_reasoning: Whether the prompt opened the reasoning.
            trigger: The grammar begins after this text of the answer; empty: with the answer.

        Raises:
            GrammarError: It has a mistake, or is not supported.
        """
        with self._lock:
            if self._tokens is None:
                self._tokens = llguidance.LLTokenizer(
                    self._tokenizer.source(), n_vocab=self._vocab_size, eos_token=self._ends
                )
            compiled = self._kept.pop(grammar, None)
        if compiled is None:
            compiled = llguidance.LLMatcher(self._tokens, grammar, log_level=0)
            if compiled.is_error():
                raise GrammarError(first_sentence(compiled.get_error()), "Change the schema")
            _require_a_beginning(compiled.deep_copy())
        with self._lock:
            self._kept[grammar] = compiled
            if len(self._kept) > KEPT_GRAMMARS:
                self._kept.popitem(last=False)
            matcher = compiled.deep_copy()
        return Constraint(
            matcher, self._tokens, self._tokenizer, in_reasoning=in_reasoning, trigger=trigger
        )


class Constraint:
    """The state of one answer within its grammar; only the engine's thread calls it.

    Args:
        matcher: A matcher of the grammar, of its own.
        tokens: llguidance's view of the tokenizer.
        tokenizer: The model's.
        in_reasoning: See ``Grammars.constrain``.
        trigger: Likewise.

    Attributes:
        is_active: Whether the next token is bound.
    """

    def __init__(
        self, matcher: Any, tokens: Any, tokenizer: Tokenizer, *, in_reasoning: bool, trigger: str
    ) -> None:
        self._matcher = matcher
        self._tokens = tokens
        self._trigger = trigger
        self._decoder = tokenizer.stream(skip_special=False)
        self._splitter = ReasoningSplitter(in_reasoning=in_reasoning)
        self._answer = ""
        self._is_first = True
        self._think = tokenizer.token_id(THINK_OPEN)
        self.is_active = not in_reasoning and not trigger

    @property
    def is_due(self) -> bool:
        """Whether what is bound has yet to begin, and must: the answer cannot end in reasoning."""
        return not self.is_active and not self._trigger

    def allow(self, logits: Float32Array) -> Float32Array:
        """Return a copy of logits [V] in which forbidden tokens are -inf.

        Raises:
            GrammarError: It has become too complex to follow, or nothing can follow.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            why = first_sentence(self._matcher.get_error())
            raise GrammarError(f"the answer cannot go on as its schema says: {why}", "Simplify it")
        allowed = np.unpackbits(mask, count=len(logits), bitorder="little").astype(bool)
        if self._is_first and self._think is not None:
            allowed[self._think] = True  # a model may begin to reason by itself
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Take the token that was chosen.

        Raises:
            EngineError: It is none that was allowed.
        """
        starts_thinking = self._is_first and token == self._think
        self._is_first = False
        if self.is_active and not starts_thinking:
            if not self._matcher.consume_token(token):
                raise EngineError(f"token {token} does not follow the grammar")
            return
        self.is_active = False
        pieces = self._splitter.feed(self._decoder.feed(token))
        self._answer += "".join(piece.text for piece in pieces if not piece.is_reasoning)
        if self._splitter.in_answer:
            self._begin()

    def _begin(self) -> None:
        """Begin the grammar, if its trigger has come, with what has been said since."""
        at = self._answer.find(self._trigger)
        if at < 0:
            return
        rest = self._answer[at + len(self._trigger) :]
        if not self._trigger:  # white space that came with the end of the reasoning is no answer
            rest = rest.lstrip()
        said = self._tokens.tokenize_str(rest)
        if self._matcher.try_consume_tokens(said) == len(said):
            self.is_active = True
        elif not self._trigger:
            raise EngineError(f"{rest!r} does not follow the grammar")
        else:  # no call after all: text
            self._answer = rest


def _require_a_beginning(matcher: Any) -> None:
    """Refuse a grammar that no answer fits.

    Raises:
        GrammarError: It is one (a schema that refers to itself alone).
    """
    matcher.compute_bitmask()
    if matcher.is_error():
        raise GrammarError("nothing fits the schema", "Change it")


def first_sentence(text: str) -> str:
    """Return the first line of what llguidance says."""
    lines = text.strip().splitlines()
    return lines[0] if lines else "the grammar is not understood"
