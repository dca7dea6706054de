"""The tokenizer wrapper and its streaming decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import CheckpointError
from edgekit.text import tokenizer as module
from edgekit.text.tokenizer import Tokenizer, read_json_object, special_token

TINY = Path(__file__).parents[3] / "examples" / "edgekit-r1-tiny"
TOKENIZER = Tokenizer.from_folder(TINY)


def _stream(ids: list[int], *, skip_special: bool = True) -> list[str]:
    decoder = TOKENIZER.stream(skip_special=skip_special)
    return [*(decoder.feed(token) for token in ids), decoder.flush()]


@given(st.text(max_size=40))
@settings(deadline=None)
def test_text_survives_the_round_trip(text: str) -> None:
    """Byte-level tokens lose nothing: decode(encode(text)) is the text."""
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids, skip_special=False) == text


@given(st.lists(st.integers(0, 4095), max_size=40), st.booleans())
@settings(deadline=None, max_examples=200)
def test_streamed_pieces_join_to_the_full_decode(ids: list[int], skip: bool) -> None:  # noqa: FBT001
    """Any token sequence, broken UTF-8 included, streams to exactly its full decode."""
    assert "".join(_stream(ids, skip_special=skip)) == TOKENIZER.decode(ids, skip_special=skip)


@given(st.text(alphabet="aé中🙂\u0301 ", max_size=20))
@settings(deadline=None)
def test_no_piece_holds_half_a_character(text: str) -> None:
    """A character of several tokens comes out whole, with its last token."""
    pieces = _stream(TOKENIZER.encode(text))
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == text


def test_long_texts_are_cut_as_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way, which lets threads run, gives the same ids, special tokens and bos too."""
    text = "<｜User｜>To be, or 中🙂\n\n" * 1000
    assert len(text) > module.LONG_TEXT_CHARS
    ids = [TOKENIZER.encode(text, add_special=add) for add in (False, True)]
    monkeypatch.setattr(module, "LONG_TEXT_CHARS", 1 << 30)
    assert ids == [TOKENIZER.encode(text, add_special=add) for add in (False, True)]


def test_a_character_of_several_tokens_waits_for_the_last() -> None:
    """An emoji the vocabulary lacks is one piece, at its last token."""
    ids = TOKENIZER.encode("🙂")
    assert len(ids) > 1
    assert _stream(ids) == [*[""] * (len(ids) - 1), "🙂", ""]


def test_unfinished_character_is_flushed() -> None:
    """Generation cut inside a character still shows that something was there."""
    ids = TOKENIZER.encode("🙂")[:-1]
    assert "".join(_stream(ids)) == TOKENIZER.decode(ids)
    assert TOKENIZER.decode(ids) != ""


def test_endless_broken_bytes_still_stream() -> None:
    """Invalid bytes are passed on as they settle, not hoarded until the end."""
    lead = TOKENIZER.encode("🙂")[0]
    pieces = _stream([lead] * 10)
    assert sum(map(len, pieces[:-1])) >= 8


def test_special_tokens_are_skipped_or_kept() -> None:
    """Decode drops special tokens unless asked; ``<think>`` is not special and stays."""
    ids = TOKENIZER.encode("<｜User｜>hi<think>")
    assert TOKENIZER.decode(ids) == "hi<think>"
    assert TOKENIZER.decode(ids, skip_special=False) == "<｜User｜>hi<think>"


def test_special_ids_come_from_both_files(tmp_path: Path) -> None:
    """End ids are the tokenizer's own first, then the generation config's, without repeats."""
    assert TOKENIZER.bos_token_id == 0
    assert TOKENIZER.eos_token_ids == (1,)
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>"}}),
        encoding="utf-8",
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 1]}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.eos_token_ids == (1, 3)
    assert tokenizer.bos_token_id is None


@pytest.mark.parametrize("value", ["1", [1, "2"], -1, True, {"id": 1}])
def test_wrong_eos_is_refused(value: object) -> None:
    """A generation config whose eos is not an id is an error, not a model that never stops."""
    with pytest.raises(CheckpointError, match="eos_token_id"):
        Tokenizer(TINY / "tokenizer.json", {}, {"eos_token_id": value})


def test_special_token_missing_from_the_vocabulary_is_refused() -> None:
    """Files of two checkpoints do not pass for one."""
    with pytest.raises(CheckpointError, match="<\\|im_end\\|>"):
        Tokenizer(TINY / "tokenizer.json", {"eos_token": "<|im_end|>"})


def test_special_token_of_another_type_is_refused() -> None:
    """A special token is text or an added token."""
    with pytest.raises(CheckpointError, match="bos_token"):
        special_token({"bos_token": 7}, "bos_token")


def test_missing_damaged_and_oversized_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each bad tokenizer file gives one error that names it."""
    with pytest.raises(CheckpointError, match="missing"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer.from_folder(tmp_path)
    monkeypatch.setattr(module, "MAX_TOKENIZER_BYTES", 8)
    with pytest.raises(CheckpointError, match="more than"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("text", "problem"), [("[1]", "no JSON object"), ("{", "readable JSON")])
def test_damaged_json_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """A side file that is no JSON object is an error; a missing one is empty."""
    path = tmp_path / "tokenizer_config.json"
    assert read_json_object(path) == {}
    path.write_text(text)
    with pytest.raises(CheckpointError, match=problem):
        read_json_object(path)
    with pytest.raises(CheckpointError, match="more than"):
        read_json_object(path, limit_bytes=0)
