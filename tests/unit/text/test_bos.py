"""BOS: a base model's text begins with it, a rendered chat template is left alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from factories import EXAMPLE

from edgekit.pipeline.golden_windows import windows_of_tokenizer
from edgekit.text.tokenizer import Tokenizer

BOS = "<｜begin▁of▁sentence｜>"
POST_PROCESSOR = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": BOS, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}},
}


def tokenizer_folder(path: Path, *, processor: bool, **config: Any) -> Path:
    """Write the example's tokenizer, with a post-processor that adds BOS or none."""
    path.mkdir()
    shutil.copy(EXAMPLE / "tokenizer.json", path)
    whole = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    whole["post_processor"] = POST_PROCESSOR if processor else None
    (path / "tokenizer.json").write_text(json.dumps(whole))
    own = json.loads((EXAMPLE / "tokenizer_config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in (own | config).items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(kept))
    return path


@pytest.mark.parametrize(
    ("processor", "asked", "bos"),
    [(True, True, [0]), (True, None, [0]), (False, True, [0]), (False, None, [])],
)
def test_either_file_may_ask_for_bos(
    tmp_path: Path,
    processor: bool,  # noqa: FBT001 - a case
    asked: bool | None,  # noqa: FBT001 - a case
    bos: list[int],
) -> None:
    """Either file may ask for it; there are never two, and never an eos."""
    tokenizer = Tokenizer.from_folder(
        tokenizer_folder(tmp_path / "t", processor=processor, add_bos_token=asked)
    )
    plain = tokenizer.encode("once upon")
    assert 0 not in plain
    assert tokenizer.encode("once upon", add_special=True) == [*bos, *plain]
    assert tokenizer.encode(f"{BOS}once upon", add_special=True) == [0, *plain]
    assert tokenizer.encode("", add_special=True) == bos


def test_post_processor_agrees_with_tokenizers(tmp_path: Path) -> None:
    """With a post-processor the ids are those the tokenizers library gives."""
    from tokenizers import Tokenizer as HubTokenizer

    folder = tokenizer_folder(tmp_path / "t", processor=True)
    oracle = HubTokenizer.from_file(str(folder / "tokenizer.json"))
    got = Tokenizer.from_folder(folder).encode("def f(x):", add_special=True)
    assert got == oracle.encode("def f(x):").ids


@pytest.mark.parametrize("template", [None, "{{ bos_token }}{{ messages[0]['content'] }}"])
def test_golden_sequences_begin_with_one_bos(tmp_path: Path, template: str | None) -> None:
    """A base model's golden sequences have a BOS; a template that writes its own gets no second."""
    folder = tokenizer_folder(tmp_path / "t", processor=True, chat_template=template)
    for window in windows_of_tokenizer(folder):
        assert window[0] == 0
        assert 0 not in window[1:]


def test_a_template_without_bos_gets_none(tmp_path: Path) -> None:
    """A chat template that writes no BOS is taken at its word, as transformers does."""
    template = "{{ messages[0]['content'] }}"
    folder = tokenizer_folder(tmp_path / "t", processor=True, chat_template=template)
    assert all(0 not in window for window in windows_of_tokenizer(folder))
