"""Generation: what is fed, when it ends, what the reader sees."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.engine.generate import TextGenerator, generate
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.engine.session import InferenceSession
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.text.reasoning import TextPiece
from edgekit.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[3] / "examples" / "edgekit-r1-tiny"
TOKENIZER = Tokenizer.from_folder(TINY)
EOS = 1
GREEDY = SamplingParams()


class ScriptedSession:
    """An ``InferenceSession`` whose greedy continuation of any prompt is ``script``."""

    def __init__(self, script: Sequence[int], vocab_size: int, max_context: int = 256) -> None:
        self.script = list(script)
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.max_sequences = 1
        self.fed: list[tuple[str, int, list[int]]] = []
        self._prompt = 0

    def prefill(
        self, slot: int, tokens: Sequence[int], start: int = 0, *, all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the script's first token."""
        assert slot == 0
        assert not all_logits
        self.fed.append(("prefill", start, list(tokens)))
        self._prompt = start + len(tokens)
        return self._logits(0)

    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Return the logits of the script's token after ``positions``."""
        assert list(slots) == [0]
        assert positions[0] < self.max_context
        self.fed.append(("decode", positions[0], list(tokens)))
        return self._logits(positions[0] - self._prompt + 1)[None]

    def release(self, slot: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def _logits(self, step: int) -> npt.NDArray[np.float32]:
        logits = np.zeros(self.vocab_size, dtype=np.float32)
        logits[self.script[step]] = 1
        return logits


def _writes(text: str, max_context: int = 256) -> ScriptedSession:
    return ScriptedSession([*TOKENIZER.encode(text), EOS], 4096, max_context)


def test_tokens_are_fed_back_at_the_next_position() -> None:
    """The prompt is prefilled once, then every yielded token but an unneeded last is decoded."""
    session = ScriptedSession([5, 6, 7, EOS], 10)
    assert list(generate(session, [2, 3], GREEDY, {EOS})) == [5, 6, 7]
    decoded = [("decode", 2, [5]), ("decode", 3, [6]), ("decode", 4, [7])]
    assert session.fed == [("prefill", 0, [2, 3]), *decoded]


def test_max_tokens_ends_without_a_wasted_step() -> None:
    """The last allowed token is not fed."""
    session = ScriptedSession([5, 6, 7, EOS], 10)
    assert list(generate(session, [2, 3], SamplingParams(max_tokens=2), {EOS})) == [5, 6]
    assert len(session.fed) == 2


def test_a_full_context_ends_the_generation() -> None:
    """Every position is used, and one more token comes out than fits."""
    session = ScriptedSession([5, 6, 7, 8, EOS], 10, max_context=4)
    assert list(generate(session, [2, 3], GREEDY, {EOS})) == [5, 6, 7]
    session = ScriptedSession([5, 6], 10, max_context=2)
    assert list(generate(session, [2, 3], GREEDY, {EOS})) == [5]


def test_prompts_that_cannot_run_are_refused() -> None:
    """Too long names both lengths; empty says so; neither reaches the engine."""
    session = ScriptedSession([5], 10, max_context=2)
    with pytest.raises(ContextOverflowError, match=r"3 tokens.* holds 2"):
        list(generate(session, [2, 3, 4], GREEDY, {EOS}))
    with pytest.raises(EngineError, match="no tokens"):
        list(generate(session, [], GREEDY, {EOS}))
    assert session.fed == []


def test_sampling_uses_the_step_of_the_token() -> None:
    """A generation draws what the sampler draws for steps 0, 1, 2..., so it can be repeated."""

    class Flat(ScriptedSession):
        def _logits(self, step: int) -> np.ndarray:
            return np.zeros(self.vocab_size + 0 * step, dtype=np.float32)

    params = SamplingParams(temperature=1.0, seed=7, max_tokens=8)
    tokens = list(generate(Flat([0] * 9, 1000), [1], params, set()))
    flat = np.zeros(1000, dtype=np.float32)
    assert tokens == [Sampler(params).sample(flat, step) for step in range(8)]


def test_reasoning_and_answer_stream_apart() -> None:
    """A prompt that opens the reasoning gives reasoning, then the answer, and no tags."""
    session = _writes("2+2=4 🙂</think>\n\nFour 中.")
    prompt = "<｜User｜>2+2?<｜Assistant｜><think>\n"
    generation = TextGenerator(session, TOKENIZER).stream(prompt, GREEDY)
    pieces = list(generation)
    assert generation.reasoning == "2+2=4 🙂"
    assert generation.answer == "\n\nFour 中."
    assert "".join(piece.text for piece in pieces) == generation.reasoning + generation.answer
    assert [key for key, _ in itertools.groupby(piece.is_reasoning for piece in pieces)] == [
        True,
        False,
    ]
    assert generation.stats.finish_reason == "stop"
    assert generation.stats.prompt_tokens == len(TOKENIZER.encode(prompt))
    assert generation.stats.generated_tokens == len(session.script) - 1


def test_a_model_that_does_not_think_only_answers() -> None:
    """Without the tag in the prompt or the text there is no reasoning."""
    generation = TextGenerator(_writes("Hello."), TOKENIZER).complete("hi", GREEDY)
    assert (generation.reasoning, generation.answer) == ("", "Hello.")


@pytest.mark.parametrize("stop", [("ten nine",), ("n ni", "zzz"), ("nine", "eight")])
def test_stop_strings_cut_across_tokens(stop: tuple[str, ...]) -> None:
    """The text ends right before the stop string, however its tokens fall, and says stop."""
    text = "eleven ten nine eight seven"
    session = _writes(text)
    generation = TextGenerator(session, TOKENIZER).complete("count", SamplingParams(stop=stop))
    assert generation.answer == text[: min(text.find(item) for item in stop if item in text)]
    assert generation.stats.finish_reason == "stop"
    assert len(session.fed) < len(session.script)


def test_length_is_told_from_stop() -> None:
    """A cut generation says length, and what was held back still comes out."""
    session = _writes("abc <think")
    params = SamplingParams(max_tokens=len(session.script) - 1, stop=("<think>x",))
    generation = TextGenerator(session, TOKENIZER).complete("hi", params)
    assert generation.answer == "abc <think"
    assert generation.stats.finish_reason == "length"


def test_stats_time_the_engine_and_not_the_reader() -> None:
    """Time to first token and tokens/s come from the clock around each step."""
    ticks = itertools.count()

    def clock() -> float:
        return next(ticks) * 0.5

    session = ScriptedSession([*TOKENIZER.encode("abcd")[:1] * 5, EOS], 4096)
    generation = TextGenerator(session, TOKENIZER, clock=clock).stream("hi", GREEDY)
    with pytest.raises(EngineError, match="not finished"):
        _ = generation.stats
    for _ in generation:
        clock()  # a slow reader
    assert generation.stats.time_to_first_token_s == pytest.approx(0.5)
    assert generation.stats.decode_tokens_per_s == pytest.approx(2.0)
    assert generation.stats.generated_tokens == 5


def test_an_end_token_at_once_is_an_empty_answer() -> None:
    """Nothing generated is a finished generation, not an error."""
    generation = TextGenerator(ScriptedSession([EOS], 4096), TOKENIZER).complete("hi", GREEDY)
    assert (generation.answer, generation.stats.generated_tokens) == ("", 0)
    assert generation.stats.decode_tokens_per_s == 0
    assert generation.stats.finish_reason == "stop"


def test_the_seed_in_the_stats_repeats_the_generation() -> None:
    """An unset seed is reported, so that a user can ask for the same again."""
    session = _writes("hello")
    stats = TextGenerator(session, TOKENIZER).complete("hi", SamplingParams()).stats
    assert 0 <= stats.seed < 1 << 64


def test_a_base_models_prompt_begins_with_one_bos() -> None:
    """``add_bos`` puts the BOS before the text, unless the text has it."""
    for prompt in ("hi", "<｜begin▁of▁sentence｜>hi"):
        session = _writes("x")
        TextGenerator(session, TOKENIZER, add_bos=True).complete(prompt, GREEDY)
        assert session.fed[0] == ("prefill", 0, [0, *TOKENIZER.encode("hi")])


def test_pieces_are_typed() -> None:
    """A piece carries its text and where it belongs."""
    generation = TextGenerator(_writes("x"), TOKENIZER).stream("hi", GREEDY)
    assert next(generation) == TextPiece("x", is_reasoning=False)


def test_the_fake_keeps_the_protocol() -> None:
    """The fake these tests rely on is an InferenceSession to the type checker and at run time."""
    session: InferenceSession = ScriptedSession([EOS], 4)
    assert session.max_sequences == 1


def test_engine_modules_import_nothing_heavy() -> None:
    """Importing sampling, generation and text loads no onnx, onnxruntime, torch, transformers."""
    code = (
        "import sys, edgekit.engine.generate, edgekit.engine.sampler, edgekit.engine.session, "
        "edgekit.text.chat_template, edgekit.engine.ort; "
        "heavy = {'onnx', 'onnxruntime', 'torch', 'transformers', 'tokenizers', 'jinja2'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
