"""A request's tokens: no end is chosen before its time, by candidates or by whole rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from factories import EXAMPLE

from device.runtime.constraint import Grammars
from device.runtime.grammar import ANY_OBJECT, json_grammar
from device.runtime.request import Request
from edgekit.engine.candidates import Candidates
from edgekit.engine.sampler import SamplingParams
from edgekit.text.tokenizer import Tokenizer

END, NEXT, V = 7, 300, 4096


def _row() -> npt.NDArray[np.float32]:
    """Return logits in which the end token is likeliest, and one other the next."""
    row = np.zeros(V, np.float32)
    row[END], row[NEXT] = 9, 8
    return row


def _candidates() -> Candidates:
    row = _row()
    order = np.argsort(-row, kind="stable")[:8]
    return Candidates(order, row[order], 0.0, None, lambda: row)


def _request(**more: object) -> Request:
    return Request(
        (1, 2),
        SamplingParams(),
        frozenset({END}),
        lambda request, token: True,  # noqa: ARG005 - the sink's form
        lambda request: None,  # noqa: ARG005
        **more,  # type: ignore[arg-type]  # by name
    )


@pytest.mark.parametrize("row", [_row, _candidates])
def test_no_end_before_min_tokens(row: object) -> None:
    """Until then the likeliest other token; then the end."""
    request = _request(min_tokens=2)
    assert callable(row)
    for _ in range(2):
        assert request.selects_at is None
        token = request.sample(row())
        assert token == NEXT
        request.generated.append(token)
    assert request.selects_at == 0
    assert request.sample(row()) == END


@pytest.mark.parametrize("row", [_row, _candidates])
def test_a_bound_answer_does_not_end_in_its_reasoning(row: object) -> None:
    """What is bound has to come; candidates are enough until an end token is among the chosen."""
    tokenizer = Tokenizer.from_folder(Path(EXAMPLE))
    grammars = Grammars(tokenizer, V, {END})
    grammar = json_grammar(ANY_OBJECT, leading=True)
    request = _request(constraint=grammars.constrain(grammar, in_reasoning=True))
    assert callable(row)
    assert request.selects_at == 0
    assert request.sample(row()) == NEXT
    free = _request(constraint=grammars.constrain(grammar, in_reasoning=True, trigger="<call>"))
    assert free.sample(row()) == END
