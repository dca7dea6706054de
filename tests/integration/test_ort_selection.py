"""Selection on a real exported graph: the tokens, errors and bookkeeping of whole rows.

The code of CUDA on the CPU device: the same graph, bindings and views of device memory, with the
selection joined to the model's graph and apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from session_cases import random_tokens

from edgekit.bundle.reader import open_bundle
from edgekit.contracts import engine_io
from edgekit.engine import ort_run, ort_select, ort_step
from edgekit.engine.candidates import Candidates, best_of
from edgekit.engine.generate import generate
from edgekit.engine.load import load_bundle
from edgekit.engine.ort import OrtSession
from edgekit.engine.ort_cache import HostBuffer
from edgekit.engine.ort_select import Select
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.engine.step_inputs import ALIGNMENT
from edgekit.errors import EngineError
from edgekit.models.config import ModelConfig
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model's unquantized float32-activation bundle."""
    root = tmp_path_factory.mktemp("selection")
    checkpoint = write_checkpoint(root / "checkpoint", family="qwen2", hidden=64, intermediate=64)
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS["cpu"],
        recipe=load_recipe("float16"),
        out=root / "bundle",
        max_context=200,
        max_sequences=4,
    )
    return build(request).path


def opened(bundle: Path, select: Select | None) -> Iterator[OrtSession]:
    model = load_bundle(
        open_bundle(bundle), dialect="ort", max_sequences=4, threads=1, select=select
    )
    assert isinstance(model.session, OrtSession)
    yield model.session
    model.session.close()


@pytest.fixture(params=["joined", "joined-greedy", "apart"])
def selecting(bundle: Path, request: pytest.FixtureRequest) -> Iterator[OrtSession]:
    """A session that selects, as on CUDA."""
    yield from opened(bundle, request.param)


@pytest.fixture
def session(bundle: Path) -> Iterator[OrtSession]:
    yield from opened(bundle, None)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(200)


def test_candidates_of_ragged_steps_are_the_rows(selecting: OrtSession, tokens: list[int]) -> None:
    """Samplers draw from candidates what they draw from the same step's rows, to the bit."""
    starts = {0: 40, 1: 7, 3: 130}
    for slot, start in starts.items():
        selecting.prefill(slot, tokens[:start])
    greedy = Sampler(SamplingParams())
    nucleus = Sampler(SamplingParams(temperature=0.6, top_p=0.95, seed=1))
    for step, slots in enumerate([[0, 1, 3], [3], [1, 0], [0, 3], [1, 0, 3]]):
        places = [starts[slot] for slot in slots]
        fed = [tokens[place] for place in places]
        rows = selecting.decode(slots, fed, places)  # again at the same places: overwrites them
        for temperature, sampler in ((0.0, greedy), (0.6, nucleus)):
            chosen = selecting.decode_candidates(slots, fed, places, [temperature] * len(slots))
            assert all(isinstance(one, Candidates) for one in chosen)
            drawn = [sampler.sample(one, step) for one in chosen]
            assert drawn == [sampler.sample(row, step) for row in rows]
            fetched = [one.row() for one in chosen if isinstance(one, Candidates)]
            np.testing.assert_array_equal(fetched, rows)
        for slot in slots:
            starts[slot] += 1
    assert selecting.rows_fetched >= 2 * 11


def test_generation_is_the_same_with_candidates(selecting: OrtSession, tokens: list[int]) -> None:
    """Token by token, greedy and sampled, on a model whose logits are flat."""
    for params in (
        SamplingParams(max_tokens=30),
        SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=30),
        SamplingParams(temperature=0.2, top_k=20, seed=6, max_tokens=30),
        SamplingParams(temperature=1.0, seed=7, max_tokens=30),
    ):
        ours = list(generate(selecting, tokens[:20], params, {-1}))
        selecting._selector, kept = None, selecting._selector
        assert ours == list(generate(selecting, tokens[:20], params, {-1}))
        selecting._selector = kept


def test_a_row_is_to_be_had_until_the_next_step(selecting: OrtSession, tokens: list[int]) -> None:
    """Logits that were overwritten are refused, not handed out."""
    selecting.prefill(0, tokens[:5])
    [first] = selecting.decode_candidates([0], [1], [5], [0.0])
    [second] = selecting.decode_candidates([0], [1], [6], [0.0])
    assert isinstance(first, Candidates)
    assert isinstance(second, Candidates)
    assert second.row().shape == (selecting.vocab_size,)
    with pytest.raises(EngineError, match="next step"):
        first.row()


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_nan_is_reported_by_a_selection_too(
    selecting: OrtSession, tokens: list[int], temperature: float
) -> None:
    """The same error as of a whole row, and the same recovery."""
    selecting.prefill(0, tokens[:10])
    selecting.prefill(1, tokens[:10])
    wanted = selecting.decode([0], [tokens[10]], [10])
    damaged = selecting._cache._buffers[0]
    assert isinstance(damaged, HostBuffer)
    shape = selecting._cache.shape(4)
    damaged.array[: math.prod(shape)].reshape(shape)[1, 0, 3, 0] = np.nan
    with pytest.raises(EngineError, match="NaN or infinite logits in slot 1"):
        selecting.decode_candidates([0, 1], [tokens[10]] * 2, [10, 10], [temperature] * 2)
    np.testing.assert_allclose(selecting.decode([0], [tokens[10]], [10]), wanted, atol=1e-5)
    again = selecting.prefill(1, tokens[:11])
    np.testing.assert_allclose(again, wanted[0], atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_an_idle_slot_may_hold_anything(
    selecting: OrtSession, tokens: list[int], temperature: float
) -> None:
    """Rows between those that are asked for are neither looked at nor reported."""
    for slot in (0, 1, 3):
        selecting.prefill(slot, tokens[:10])
    wanted = selecting.decode([3, 0], [5, 6], [10, 10])
    damaged = selecting._cache._buffers[0]
    assert isinstance(damaged, HostBuffer)
    shape = selecting._cache.shape(4)
    damaged.array[: math.prod(shape)].reshape(shape)[1, 0, 3, 0] = np.nan
    found = selecting.decode_candidates([3, 0], [5, 6], [10, 10], [temperature] * 2)
    assert [best_of(one) for one in found] == wanted.argmax(axis=1).tolist()


def test_selections_have_graphs_of_their_own(selecting: OrtSession) -> None:
    """Each captured selection has its own id for good, kept with its step."""
    selector = selecting._selector
    assert selector is not None
    selector._cuda_graph = True
    steps = [selecting._decode_step(*shape) for shape in [(0, 1), (1, 1), (0, 4)]]
    made = [step.selection(selector, sums=False) for step in steps]
    assert [step.selection(selector, sums=False) for step in steps] == made
    assert selector._graphs == 3


def test_a_joined_graph_gives_the_same_logits(
    selecting: OrtSession, session: OrtSession, tokens: list[int]
) -> None:
    """To the bit, in every prefill chunk, with all logits or the last, and in batches."""
    selecting.prefill(2, tokens[:9])
    found = []
    for ours in (selecting, session):
        ours._chunk = 16
        whole = ours.prefill(1, tokens[:50], all_logits=True)
        last = ours.prefill(0, tokens[:33])
        ours.decode_candidates([0, 1], [5, 6], [33, 50], [0.0, 0.7])
        found.append((whole, last, ours.decode([1, 0], [6, 5], [50, 33])))
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_joined_step_is_one_run(
    bundle: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy or sampled; where only the best token is joined, sampling has a run of its own."""
    runs = []
    real = ort_run.run_bound

    def counted(*bound: Any) -> None:
        runs.append(bound)
        real(*bound)

    monkeypatch.setattr(ort_step, "run_bound", counted)
    monkeypatch.setattr(ort_select, "run_bound", counted)
    expected: dict[Select, list[int]] = {
        "joined": [1, 1],
        "joined-greedy": [1, 2],
        "apart": [2, 2],
    }
    for select, counts in expected.items():
        for model in opened(bundle, select):
            model.prefill(0, tokens[:5])
            for temperature, count in zip((0.0, 0.8), counts, strict=True):
                runs.clear()
                model.decode_candidates([0], [1], [5], [temperature])
                assert len(runs) == count


def test_a_damaged_graph_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    """Joining something to it hides neither what it is called nor that it cannot be read."""
    config = load_bundle(open_bundle(bundle)).config
    assert isinstance(config, ModelConfig)
    graph = tmp_path / "ort.float32.onnx"
    with pytest.raises(EngineError, match=r"cannot read .*ort\.float32\.onnx: No such file"):
        OrtSession(graph, config=config, max_context=100, select="joined")
    graph.write_bytes((bundle / "ort.float32.onnx").read_bytes()[:-100])
    with pytest.raises(EngineError, match=r"refuses ort\.float32\.onnx"):
        OrtSession(graph, config=config, max_context=100, select="joined")


def test_a_steps_inputs_move_in_one_copy(selecting: OrtSession, tokens: list[int]) -> None:
    """All that a device reads is in one buffer, apart enough for any kernel's loads."""
    selecting.prefill(0, tokens[:5])
    selecting.decode_candidates([0], [7], [5], [0.5])
    step = selecting._decode_step(0, 1)
    arrays, packed = step.inputs.arrays, step._host_packed
    moved = {name: array for name, array in arrays.items() if name not in step.inputs.on_host}
    assert all(np.shares_memory(array, packed) for array in moved.values())
    places = sorted(array.ctypes.data - packed.ctypes.data for array in moved.values())
    assert [place % ALIGNMENT for place in places] == [0] * len(moved)
    assert len(set(places)) == len(moved)
    assert arrays[engine_io.INPUT_IDS].tolist() == [[7]]
    assert arrays[engine_io.SEQLENS_K].tolist() == [5]
    assert step.temperatures.tolist() == [[0.5]]


def test_a_cpu_has_its_rows_at_hand(session: OrtSession, tokens: list[int]) -> None:
    """Unless told to, a session on a CPU returns them whole."""
    session.prefill(0, tokens[:5])
    [row] = session.decode_candidates([0], [1], [5], [0.0])
    assert isinstance(row, np.ndarray)
