"""Reasoning and answer told apart, and stop strings found, in any chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.text.reasoning import ReasoningSplitter, TextPiece, prompt_opens_reasoning
from edgekit.text.stop import StopMatcher

FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<", "think", ">", "</", "\n", " ", "a", "<thin", "k>", "中"]
)
TEXTS = st.lists(FRAGMENTS, max_size=12).map("".join)


def _chunks(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _split(chunks: list[str], *, inside: bool) -> tuple[str, str, list[TextPiece]]:
    splitter = ReasoningSplitter(in_reasoning=inside)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    pieces += splitter.finish()
    reasoning = "".join(piece.text for piece in pieces if piece.is_reasoning)
    answer = "".join(piece.text for piece in pieces if not piece.is_reasoning)
    return reasoning, answer, pieces


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "answer"),
    [
        ("2+2=4</think>\n\n4", True, "2+2=4", "\n\n4"),
        ("<think>\n2+2</think>4", True, "\n2+2", "4"),
        ("<think>2+2</think>4", False, "2+2", "4"),
        ("\n<think>2+2</think>4", False, "\n2+2", "4"),
        ("plain answer", False, "", "plain answer"),
        ("say <think> or </think>", False, "", "say <think> or </think>"),
        ("a</think>b<think>c</think>d", True, "a", "b<think>c</think>d"),
        ("cut short </thi", True, "cut short </thi", ""),
        ("<think", False, "", "<think"),
        ("", True, "", ""),
        ("</think>x", True, "", "x"),
        ("a<think>b</think>c", True, "a<think>b", "c"),
        ("  ", False, "", "  "),
    ],
)
def test_known_splits(text: str, inside: bool, reasoning: str, answer: str) -> None:  # noqa: FBT001
    """The tags open and close where the model means them, and nowhere else."""
    assert _split([text], inside=inside)[:2] == (reasoning, answer)


@given(TEXTS, st.lists(st.integers(0, 100), max_size=12), st.booleans())
def test_chunking_never_changes_the_split(text: str, cuts: list[int], inside: bool) -> None:  # noqa: FBT001
    """However the text is cut, reasoning and answer are those of the whole."""
    assert (
        _split(_chunks(text, cuts), inside=inside)[:2]
        == (_split([text], inside=inside)[:2])
        == _split(list(text), inside=inside)[:2]
    )


@given(TEXTS, st.lists(st.integers(0, 100), max_size=12), st.booleans())
def test_no_text_is_lost_or_reordered(text: str, cuts: list[int], inside: bool) -> None:  # noqa: FBT001
    """All that disappears is at most one opening and one closing tag."""
    reasoning, answer, pieces = _split(_chunks(text, cuts), inside=inside)
    assert "".join(piece.text for piece in pieces) == reasoning + answer
    forms = {
        head + close + answer
        for close in ("", "</think>")
        for head in (reasoning, *_with_tag(reasoning))
    }
    assert text in forms


def _with_tag(reasoning: str) -> list[str]:
    """Put ``<think>`` back at each place it may have stood: anywhere in leading white space."""
    space = len(reasoning) - len(reasoning.lstrip())
    return [reasoning[:at] + "<think>" + reasoning[at:] for at in range(space + 1)]


def test_pieces_come_as_soon_as_they_are_settled() -> None:
    """Streaming is not delayed: text that cannot be a tag passes at once."""
    splitter = ReasoningSplitter(in_reasoning=True)
    assert splitter.feed("step one <") == [TextPiece("step one ", True)]
    assert splitter.feed(" 3") == [TextPiece("< 3", True)]
    assert splitter.in_reasoning
    assert splitter.feed("</think>done") == [TextPiece("done", False)]
    assert not splitter.in_reasoning


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [("x<think>", True), ("x<think>\n", True), ("<think>\n\n</think>\n\n", False), ("x", False)],
)
def test_the_prompt_says_where_generation_begins(prompt: str, inside: bool) -> None:  # noqa: FBT001
    """A prompt that ends in the opening tag starts inside the reasoning."""
    assert prompt_opens_reasoning(prompt) is inside


def _until_stop(chunks: list[str], stop: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stop)
    text = "".join([*(matcher.feed(chunk) for chunk in chunks), matcher.flush()])
    return text, matcher.stopped


@given(
    st.text(alphabet="abc", max_size=20),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_stop_strings_are_found_in_any_chunks(text: str, stop: list[str], cuts: list[int]) -> None:
    """The text ends right before the earliest stop string, however it arrives."""
    found = [text.find(item) for item in stop if item in text]
    expected = (text[: min(found)], True) if found else (text, False)
    assert _until_stop(_chunks(text, cuts), stop) == expected
    assert _until_stop(list(text), stop) == expected


def test_text_after_a_stop_string_is_dropped() -> None:
    """Nothing comes out once stopped."""
    matcher = StopMatcher(["END"])
    assert matcher.feed("a EN") == "a "
    assert matcher.feed("D more") == ""
    assert matcher.stopped
    assert matcher.feed("more") == ""
    assert matcher.flush() == ""
