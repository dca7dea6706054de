"""One request to the engine: what is asked, and what becomes of it, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from device.runtime.adjust import Adjustment
from device.runtime.logprobs import TokenLogprob, token_logprob
from edgekit.engine.candidates import Candidates, Row
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.errors import EdgekitError

if TYPE_CHECKING:  # llguidance is loaded where a grammar is asked for
    from device.runtime.constraint import Constraint

FinishReason = Literal["stop", "length", "cancelled", "expired", "failed"]
"""``stop``: an end token; ``length``: its limit or the context; ``expired``: its deadline passed;
``failed``: see ``Request.error``."""

TokenSink = Callable[["Request", int], bool]
"""Called with each token; returns whether to go on (a stop string ends a request)."""
FinishSink = Callable[["Request"], None]
"""Called once, when nothing more will come."""


@dataclass(slots=True, eq=False)
class Request:
    """What is asked of the engine.

    Attributes:
        prompt: Token ids, at least one.
        params: How to sample; stop strings are the sink's business.
        ends: Tokens that end the generation; they are not passed on.
        client: Whose it is: clients take turns, requests of one go in order.
        deadline_s: Of the scheduler's clock; after it the request ends, waiting or running. None
            waits for ever.
        on_token: Told each token.
        on_finish: Told of the end.
        adjustment: What it changes of its logits.
        constraint: The grammar that binds its tokens; None: any token goes.
        top_logprobs: How many likeliest tokens are told in each place; None: no log probabilities.
        min_tokens: Until there are so many no end token is chosen.
        logprobs: Of ``generated``, if they are wanted.
        generated: Tokens so far.
        reused_tokens: Of the prompt, those that a slot held already.
        reason: Why it ended; None while it goes on.
        error: What failed.
        queued_s: When it was submitted, and so the next two; None until then.
        started_s: When it got its slot.
        first_token_s: When its first token was sampled.
        last_token_s: When the step of its last token ended.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    ends: frozenset[int]
    on_token: TokenSink
    on_finish: FinishSink
    client: str = ""
    deadline_s: float | None = None
    adjustment: Adjustment = field(default_factory=Adjustment)
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    min_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    reused_tokens: int = 0
    reason: FinishReason | None = None
    error: EdgekitError | None = None
    queued_s: float | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.params)

    @property
    def selects_at(self) -> float | None:
        """See ``Sampler.selects_at``; logits that are changed or told of are wanted whole."""
        return None if self._wants_row else self.sampler.selects_at

    @property
    def _wants_row(self) -> bool:
        bound = self.constraint is not None and self.constraint.is_active
        bound = bound or len(self.generated) < self.min_tokens
        return bound or self.top_logprobs is not None or not self.adjustment.changes_nothing

    @property
    def _must_go_on(self) -> bool:
        """Whether no end token may be chosen."""
        is_due = self.constraint is not None and self.constraint.is_due
        return bool(self.ends) and (is_due or len(self.generated) < self.min_tokens)

    def sample(self, row: Row) -> int:
        """Return the next token, chosen of a row of logits or of candidates.

        Raises:
            EngineError: The logits have no finite maximum, or the grammar cannot be followed.
        """
        step, token = len(self.generated), None
        if isinstance(row, Candidates) and not self._wants_row:
            token = self.sampler.sample(row, step)
            if token in self.ends and self._must_go_on:
                token = None  # seldom: chosen anew, of the whole row
        if token is None:
            logits = row.row() if isinstance(row, Candidates) else row
            token = self.sampler.sample(self._changed(logits), step)
            if self.top_logprobs is not None and token not in self.ends:
                self.logprobs.append(token_logprob(logits, token, self.top_logprobs))
        if self.constraint is not None and token not in self.ends:
            self.constraint.accept(token)
        return token

    def _changed(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not self.adjustment.changes_nothing:
            logits = self.adjustment.apply(logits, self.prompt, self.generated)
        if self.constraint is not None and self.constraint.is_active:
            logits = self.constraint.allow(logits)
        if self._must_go_on:
            logits = logits.copy()
            logits[list(self.ends)] = -np.inf
        return logits

    def finish(self, reason: FinishReason, error: EdgekitError | None = None) -> None:
        """End it and tell; an ended request stays as it ended."""
        if self.reason is None:
            self.reason, self.error = reason, error
            self.on_finish(self)
