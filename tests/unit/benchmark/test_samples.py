"""What a streamed answer took, read from its events and their times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.benchmark.samples import DONE, Reading, Sample
from edgekit.errors import EndpointError

USAGE = {
    "prompt_tokens": 32,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **more: Any) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return json.dumps({"choices": choices, **more})


def read(*events: tuple[float, str]) -> Sample:
    """Read events that came at these seconds; the request was sent at 10."""
    reading = Reading("http://it", 10.0, None)
    for now_s, data in events:
        reading.take(data, now_s)
    return reading.sample()


def test_times_are_those_of_the_text_and_of_the_end() -> None:
    """The role's empty chunk is no token, reasoning is; usage's chunk is not waited for."""
    found = read(
        (10.1, chunk({"role": "assistant", "content": ""})),
        (10.5, chunk({"reasoning_content": "hm"})),
        (11.0, chunk({"content": "yes"})),
        (11.5, chunk({}, "stop")),
        (19.0, chunk(usage=USAGE)),
        (19.0, DONE),
    )
    assert found.ttft_s == pytest.approx(0.5)
    assert found.e2e_s == pytest.approx(1.5)
    assert found.tpot_s == pytest.approx(1.0 / 4)  # five tokens, as usage says, not two chunks
    assert found.tokens_per_s == pytest.approx(5 / 1.5)
    assert (found.prompt_tokens, found.cached_tokens, found.finish_reason) == (32, 16, "stop")


def test_completions_and_usage_beside_a_choice() -> None:
    """``text`` counts, and usage in the last choice's chunk; a cache not told of is unknown."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    body = {"choices": [{"text": "b", "finish_reason": "length"}], "usage": usage}
    first = {"choices": [{"text": "a", "finish_reason": None}], "usage": None}
    found = read((11, json.dumps(first)), (12, json.dumps(body)), (12, DONE))
    assert (found.ttft_s, found.tpot_s, found.cached_tokens) == (1.0, 1.0, None)


def test_an_answer_of_the_end_alone() -> None:
    """Its first token is its last, and has no time per output token."""
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    found = read((12, chunk({"content": ""}, "stop")), (12, chunk(usage=usage)), (12, DONE))
    assert (found.ttft_s, found.e2e_s, found.tpot_s) == (2.0, 2.0, None)


def test_the_first_text_is_told_once() -> None:
    """LoadGen takes one first token a sample."""
    told: list[int] = []
    reading = Reading("http://it", 0.0, lambda: told.append(1))
    for now_s in (1.0, 2.0, 3.0):
        reading.take(chunk({"content": "a"}), now_s)
    assert told == [1]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([chunk({"content": "a"})], "ended its stream before"),
        ([chunk({"content": "a"}, "stop"), chunk(usage=USAGE)], "ended its stream before"),
        ([chunk({"content": "a"}, "stop"), DONE], "does not say how many tokens"),
        ([chunk({}, "stop", usage={"prompt_tokens": 1, "completion_tokens": 0}), DONE], "how many"),
        (["<html>"], "none of OpenAI's: '<html>'"),
        (["[1]"], "none of OpenAI's"),
        (['{"choices": 3}'], "none of OpenAI's"),
        (['{"error": {"message": "out of memory"}}'], "failed while it answered: out of memory"),
        (['{"error": "out of memory."}'], "failed while it answered: out of memory"),
    ],
)
def test_what_is_no_whole_answer_is_told(events: list[str], said: str) -> None:
    """A stream that breaks off, uncounted tokens, other events and errors are not measured."""
    with pytest.raises(EndpointError, match=said):
        read(*((11.0, data) for data in events))
