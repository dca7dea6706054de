"""Vocabularies in which marks of calls are tokens of their own, as DeepSeek's and Qwen's have."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from factories import EXAMPLE

from device.runtime.constraint import Grammars
from device.runtime.grammar import Tools, calls_grammar
from edgekit.text.tokenizer import Tokenizer
from edgekit.text.tool_calls import DEEPSEEK, DEEPSEEK_PLAIN, QWEN, ToolCall, ToolForm

V = 4200
MARKS = (
    *(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
    ),
    *("<｜tool▁sep｜>", "<tool_call>", "</tool_call>"),
)
CALLS = [ToolCall("weather", '{"city": "Kiel"}'), ToolCall("clock", "{}")]
TOOLS = tuple({"function": {"name": call.name}} for call in CALLS)


@pytest.fixture(scope="module", params=[True, False], ids=["special", "added"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """Return the example's with the marks added; Qwen's are not special, DeepSeek's may be."""
    folder = tmp_path_factory.mktemp("tokenizer")
    for path in Path(EXAMPLE).glob("*.json"):
        shutil.copy(path, folder)
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [
        tokenizers.AddedToken(mark, special=request.param, normalized=False) for mark in MARKS
    ]
    (made.add_special_tokens if request.param else made.add_tokens)(tokens)
    made.save(str(folder / "tokenizer.json"))
    return Tokenizer.from_folder(folder)


@pytest.mark.parametrize("form", [DEEPSEEK, DEEPSEEK_PLAIN, QWEN], ids=["r1", "v31", "qwen"])
@pytest.mark.parametrize("is_required", [True, False])
def test_calls_are_written_in_the_model_s_own_tokens(
    tokenizer: Tokenizer,
    form: ToolForm,
    is_required: bool,  # noqa: FBT001
) -> None:
    """Each mark is one token, where calls must be and where they may be."""
    grammar = calls_grammar(Tools(TOOLS, form, is_required), tokenizer, leading=True)
    grammars = Grammars(tokenizer, V, tokenizer.eos_token_ids)
    bound = grammars.constrain(grammar, trigger="" if is_required else form.trigger)
    tokens = tokenizer.encode(("" if is_required else "I look. ") + form.write_all(CALLS))
    assert sum(token >= V - 104 for token in tokens) >= 4  # the marks
    for token in tokens:
        if bound.is_active:
            assert np.isfinite(bound.allow(np.zeros(V, np.float32))[token])
        bound.accept(token)
    assert bound.is_active
    assert np.isfinite(bound.allow(np.zeros(V, np.float32))[list(tokenizer.eos_token_ids)]).all()
