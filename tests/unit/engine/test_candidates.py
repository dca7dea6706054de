"""Candidates give the tokens that whole rows give; where they cannot, the row is fetched."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgekit.engine.candidates import Candidates, best_of
from edgekit.engine.ort_select import Selector, broken, choose_select
from edgekit.engine.ort_select import candidates_of as found_in
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.engine.select_graph import (
    LOGITS,
    SELECTED,
    TEMPERATURES,
    SelectLayout,
    join_selection,
    select_graph,
)
from edgekit.engine.session import decode_rows

Array = np.ndarray[Any, Any]
VOCAB = 4096
STEPS = 3
HEATS = (1e-3, 0.3, 0.6, 1.0, 3.0, 200.0)
TOP_P = (0.05, 0.5, 0.9, 0.95, 0.999, 1.0)
TOP_K = (0, 2, 5, 40, 63, 64, 65, 300)


def opened(model: bytes) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def selector(vocab: int, dtype: Any) -> Selector:
    return Selector(vocab, dtype, "cpu", opened, cuda_graph=False)


class Fetched:
    """Rows that were asked for."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.count = 0

    def fetch(self, row: int) -> Array:
        self.count += 1
        result: Array = self.rows[row].copy()
        return result


def candidates_of(
    logits: Array, temperatures: list[float], chooser: Selector
) -> tuple[list[Candidates], Fetched]:
    """Select from logits [B, V] as a session does."""
    value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(logits[:, None]))
    selection = chooser.attach(value, len(logits), sums=any(temperatures))
    selected = selection.run(heat(temperatures))
    assert not broken(selected)
    fetched = Fetched(logits.astype(np.float32))
    fetchers = [functools.partial(fetched.fetch, row) for row in range(len(logits))]
    return found_in(selected, selection.layout, fetchers), fetched


def heat(temperatures: list[float]) -> Array:
    """Return temperatures as selections want them."""
    return np.array([[value or 1] for value in temperatures], np.float32)


def shapes_of_logits(dtype: Any) -> dict[str, Array]:
    """Return rows [V]: of a peaked model, a flat one, and full of ties."""
    random = np.random.default_rng(5)
    normal = random.normal(0, 1, VOCAB)
    peaked = 2 * normal
    peaked[random.permutation(VOCAB)[:8]] += np.linspace(8, 14, 8)
    rows = {
        "peaked": peaked,
        "normal": 4 * normal,
        "flat": normal / 100,
        "ties": np.round(2 * normal),
        "few ties": np.round(normal * 32) / 8,
        "equal": np.zeros(VOCAB),
        "negative": -40 + np.minimum(normal, 2),
    }
    return {name: row.astype(dtype) for name, row in rows.items()}


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_samplers_draw_the_same_from_candidates(dtype: Any) -> None:
    """Over kinds of logits, temperatures, top-p, top-k and seeds, every token is the row's."""
    rows, chooser = shapes_of_logits(dtype), selector(VOCAB, dtype)
    covered = total = 0
    for seed, (name, temperature) in enumerate(itertools.product(rows, HEATS)):
        [found], fetched = candidates_of(rows[name][None], [temperature], chooser)
        whole = rows[name].astype(np.float32)
        for top_p, top_k in itertools.product(TOP_P, TOP_K):
            min_p = (0.0, 0.1)[(seed + top_k) % 2]
            params = SamplingParams(temperature, top_p, top_k, seed, min_p=min_p)
            if Sampler(params).selects_at is None:
                continue
            ours = [Sampler(params).sample(found, step) for step in range(STEPS)]
            assert ours == [Sampler(params).sample(whole, step) for step in range(STEPS)], params
            total += STEPS
        covered += STEPS * len(TOP_P) * len(TOP_K) - fetched.count
    assert 0.2 * total < covered < total  # the grid has plenty of both


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_greedy_takes_the_first_of_equals(dtype: Any) -> None:
    """Ties in one group, over groups, and of more tokens than there are candidates."""
    random, chooser = np.random.default_rng(6), selector(VOCAB, dtype)
    logits = np.round(4 * random.normal(size=(40, VOCAB))).astype(dtype)
    shared = [1 + row % 6 for row in range(len(logits))]
    for row, equal in zip(logits, shared, strict=True):
        row[random.permutation(VOCAB)[:equal]] = 60
    found, fetched = candidates_of(logits, [0] * len(logits), chooser)
    assert [best_of(one) for one in found] == logits.argmax(axis=1).tolist()
    greedy = Sampler(SamplingParams())
    assert [greedy.sample(one, 0) for one in found] == logits.argmax(axis=1).tolist()
    # 4, 5 and 6 equal tokens may go on outside four candidates: each is asked for twice.
    assert fetched.count == 2 * sum(equal >= 4 for equal in shared)


def test_a_usual_step_fetches_nothing() -> None:
    """A peaked row at R1's published settings (0.6, 0.95) is all in the candidates."""
    [found], fetched = candidates_of(
        shapes_of_logits(np.float16)["peaked"][None], [0.6], selector(VOCAB, np.float16)
    )
    sampler = Sampler(SamplingParams(temperature=0.6, top_p=0.95, seed=3))
    assert len({sampler.sample(found, step) for step in range(50)}) > 1
    assert fetched.count == 0


def test_a_nucleus_at_the_edge_of_an_error_is_taken_of_the_row() -> None:
    """Where top-p ends exactly with a token, the device's sum must not decide."""
    logits = np.full(VOCAB, -100, np.float32)
    logits[[7, 9, 11, 30]] = 0
    [found], fetched = candidates_of(logits[None], [1.0], selector(VOCAB, np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.5, seed=1))
    assert {sampler.sample(found, step) for step in range(20)} == {7, 9}
    assert fetched.count == 20


def test_rows_of_a_batch_have_their_own_temperature() -> None:
    """Greedy and sampled rows of one step are each drawn as alone."""
    logits = np.random.default_rng(7).normal(0, 5, (3, VOCAB)).astype(np.float16)
    samplers = [
        Sampler(SamplingParams(temperature=value, top_p=0.9, seed=4)) for value in (0, 0.5, 1.5)
    ]
    asked = [sampler.selects_at for sampler in samplers]
    assert asked == [0.0, 0.5, 1.5]
    found, _ = candidates_of(logits, [0.0, 0.5, 1.5], selector(VOCAB, np.float16))
    for sampler, one, row in zip(samplers, found, logits, strict=True):
        wide = row.astype(np.float32)
        for step in range(STEPS):
            assert sampler.sample(one, step) == sampler.sample(wide, step)


def test_samplers_say_what_they_need() -> None:
    """The best token only, a temperature, or whole rows: nothing is cut from those."""
    assert Sampler(SamplingParams(temperature=1.0)).selects_at is None
    assert Sampler(SamplingParams(temperature=1.0, top_k=1)).selects_at == 0
    assert Sampler(SamplingParams(temperature=1e-40, top_p=0.5)).selects_at == 0
    assert Sampler(SamplingParams(temperature=0.7, top_k=20)).selects_at == 0.7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sums", [False, True])
def test_rows_that_are_not_finite_are_told_apart(bad: float, *, sums: bool) -> None:
    """One bad logit anywhere marks its row, and only that one."""
    logits = np.zeros((3, 1, 512), np.float16)
    logits[1, 0, 300] = bad
    value = ort.OrtValue.ortvalue_from_numpy(logits)
    selection = selector(512, np.float16).attach(value, 3, sums=sums)
    assert broken(selection.run(np.ones((3, 1), np.float32))) == [1]


@pytest.mark.parametrize("vocab", [31, 97, 512, 32256, 102400, 128256, 129280, 151936, 152064])
@pytest.mark.parametrize("sums", [False, True])
def test_selections_are_exact(vocab: int, *, sums: bool) -> None:
    """Of every vocabulary: a valid model, the largest logits with their tokens, and their sum."""
    count = 64 if sums else 4
    layout = SelectLayout.for_vocabulary(vocab, count, sums=sums)
    model = select_graph(layout, np.float16)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    logits = np.random.default_rng(vocab).normal(0, 4, (2, vocab)).astype(np.float16)
    found, _ = candidates_of(logits, [0.6 * sums, 2.0 * sums], selector(vocab, np.float16))
    for one, row, temperature in zip(found, logits.astype(np.float32), (0.6, 2.0), strict=True):
        assert len(one.tokens) == min(count, vocab)
        assert (np.diff(one.logits) <= 0).all()
        assert (np.diff(one.in_order()[0]) > 0).all()
        np.testing.assert_array_equal(one.logits, row[one.tokens])
        np.testing.assert_array_equal(np.sort(one.logits), np.sort(row)[-count:])
        assert one.edge == (-np.inf if len(one.tokens) == vocab else one.logits.min())
        if sums:
            exact = np.exp((row - row.max()).astype(np.float64) / temperature).sum()
            assert one.total == pytest.approx(exact, rel=1e-5)


def model_of_logits(vocab: int) -> bytes:
    """Return a model of opset 23 whose logits are its input, its weights none."""
    make, kind = onnx.helper, onnx.TensorProto.FLOAT16
    graph = make.make_graph(
        [make.make_node("Identity", ["fed"], [LOGITS])],
        "model",
        [make.make_tensor_value_info("fed", kind, ("batch", "wanted", vocab))],
        [make.make_tensor_value_info(LOGITS, kind, ("batch", "wanted", vocab))],
    )
    opsets = [make.make_opsetid("", 23)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=11)
    serialized: bytes = model.SerializeToString()
    return serialized


@pytest.mark.parametrize("vocab", [31, 512, 128256, 151936])
@pytest.mark.parametrize("sums", [False, True])
def test_a_joined_selection_is_that_of_the_last_logits(vocab: int, *, sums: bool) -> None:
    """The model stays what it was; of the last of its wanted logits the selection is exact."""
    layout = SelectLayout.ungrouped(vocab, 64 if sums else 4, sums=sums)
    joined = join_selection(model_of_logits(vocab), layout)
    parsed = onnx.load_from_string(joined)
    onnx.checker.check_model(parsed, full_check=True)
    assert parsed.graph.name == "model"
    logits = np.random.default_rng(vocab).normal(0, 4, (2, 3, vocab)).astype(np.float16)
    feeds = {"fed": logits, **({TEMPERATURES: heat([0.6, 2.0])} if sums else {})}
    same, flat = opened(joined).run([LOGITS, SELECTED], feeds)
    np.testing.assert_array_equal(same, logits)
    selected = flat.reshape(2, layout.parts, layout.count)
    found = found_in(selected, layout, [lambda: logits[0, 0]] * 2)
    for one, row, temperature in zip(found, logits[:, -1], (0.6, 2.0), strict=True):
        wide = row.astype(np.float32)
        np.testing.assert_array_equal(one.logits, wide[one.tokens])
        np.testing.assert_array_equal(np.sort(one.logits), np.sort(wide)[-layout.count :])
        if sums:
            exact = np.exp((wide - wide.max()).astype(np.float64) / temperature).sum()
            assert one.total == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_joined_selection_tells_what_is_not_finite(bad: float) -> None:
    """As one apart does; and only of the logits that are selected from."""
    layout = SelectLayout.ungrouped(512, 64, sums=True)
    logits = np.zeros((3, 2, 512), np.float16)
    logits[0, 0, 7] = logits[1, 1, 300] = bad
    feeds = {"fed": logits, TEMPERATURES: heat([1.0, 1.0, 1.0])}
    session = opened(join_selection(model_of_logits(512), layout))
    [flat] = session.run([SELECTED], feeds)
    assert broken(flat.reshape(3, layout.parts, layout.count)) == [1]


def test_selections_join_where_topk_is_fast() -> None:
    """Only the graphs that can be joined, only on CUDA, only in versions that split a row."""
    assert choose_select("cpu", (1, 32), joinable=True) == "whole"
    assert choose_select("cuda", (1, 31), joinable=True) == "joined"
    assert choose_select("cuda", (1, 30), joinable=True) == "apart"
    assert choose_select("cuda", (2, 0), joinable=False) == "apart"


@pytest.mark.parametrize("vocab", [128256, 129280, 151936, 152064])
@pytest.mark.parametrize("count", [4, 64])
def test_neither_search_is_long(vocab: int, count: int) -> None:
    """Both TopK of the published vocabularies look at a few thousand numbers."""
    layout = SelectLayout.for_vocabulary(vocab, count, sums=count == 64)
    assert vocab // layout.width + count * layout.width < 7000


def test_sessions_that_cannot_select_give_whole_rows() -> None:
    """``decode_rows`` falls back to ``decode``, and asks for whole rows where a sampler does."""

    class Plain:
        max_context = max_sequences = vocab_size = 4

        def prefill(
            self, slot: int, tokens: Any, start: int = 0, *, all_logits: bool = False
        ) -> Any:
            raise NotImplementedError

        def decode(self, slots: Any, tokens: Any, positions: Any) -> Any:
            assert len(tokens) == len(positions) == len(slots)
            return np.arange(4 * len(slots), dtype=np.float32).reshape(len(slots), 4)

        def release(self, slot: int) -> None:
            raise NotImplementedError

        def close(self) -> None:
            raise NotImplementedError

    class Selecting(Plain):
        def decode_candidates(
            self, slots: Any, tokens: Any, positions: Any, temperatures: Any
        ) -> Any:
            assert len(tokens) == len(positions)
            return ["row"] * len(slots) + [temperatures]

    rows = decode_rows(Plain(), [0, 1], [1, 1], [0, 0], [0.0, 0.5])
    assert [best_of(row) for row in rows] == [3, 3]
    selected: Any = decode_rows(Selecting(), [0], [1], [0], [0.5])
    assert selected == ["row", [0.5]]
    [first, second] = decode_rows(Selecting(), [0, 1], [1, 1], [0, 0], [0.5, None])
    assert [best_of(first), best_of(second)] == [3, 3]
