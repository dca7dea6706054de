"""Server-sent events, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.benchmark import sse
from edgekit.benchmark.sse import EventDecoder
from edgekit.errors import EndpointError

STREAM = (
    b": a comment\n\n"
    b'data: {"text": "a\xe2\x80\xa8b\xc2\x85c"}\r\n\r\n'
    b"event: message\nid: 7\ndata:no space\n\n\n"
    b"data: two\ndata: lines\n\n"
    b"data\n\n"
    b"data: [DONE]\n\ndata: never ended"
)
EVENTS = ['{"text": "a\u2028b\x85c"}', "no space", "two\nlines", "", "[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_whole_wherever_they_are_cut(cuts: list[int]) -> None:
    """Every line end of the standard, comments, other fields; Unicode's line ends are text."""
    decoder, found, before = EventDecoder(), list[str](), 0
    for cut in [*sorted(cuts), len(STREAM)]:
        found += decoder.feed(STREAM[before:cut])
        before = cut
    assert found == EVENTS


def test_lines_may_end_with_cr_alone() -> None:
    """The standard's third line end; the last one is known once more comes."""
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r\rdata: b\r\r") == ["a"]
    assert decoder.feed(b"data: c\r\r\n") == ["b", "c"]


def test_what_is_no_stream_of_events_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end does not fill the memory; bytes that are no text are an error."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    with pytest.raises(EndpointError, match="a line of the stream has more than"):
        EventDecoder().feed(b"x" * 101)
    with pytest.raises(EndpointError, match="not UTF-8"):
        EventDecoder().feed(b"data: \xff\n\n")
