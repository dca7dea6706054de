"""The ONNX Runtime session: chunks, tiers, slots and recovery, on a real exported graph."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from session_cases import random_tokens, reference_logits

from edgekit.bundle.reader import open_bundle
from edgekit.contracts import engine_io
from edgekit.engine import ort_cache
from edgekit.engine.load import graph_to_run, load_bundle
from edgekit.engine.ort import OrtSession
from edgekit.engine.ort_cache import DeviceBuffer, HostBuffer, KeyValueCache, tier_for
from edgekit.engine.step_inputs import step_inputs
from edgekit.errors import BundleError, ContextOverflowError, EngineError
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS

Array = np.ndarray[Any, Any]
CONTEXT = 700


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random checkpoint and its unquantized float32-activation bundle."""
    root = tmp_path_factory.mktemp("session")
    checkpoint = write_checkpoint(
        root / "checkpoint",
        family="qwen2",
        hidden=64,
        intermediate=64,
        max_position_embeddings=1024,
    )
    request = BuildRequest(
        model=str(checkpoint),
        target=TARGETS["cpu"],
        recipe=load_recipe("float16"),
        out=root / "bundle",
        max_context=CONTEXT,
        max_sequences=4,
    )
    return checkpoint, build(request).path


@pytest.fixture(params=["standard", "ort"])
def session(folders: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[OrtSession]:
    yield from opened(folders[1], request.param)


@pytest.fixture
def standard_session(folders: tuple[Path, Path]) -> Iterator[OrtSession]:
    yield from opened(folders[1], "standard")


def opened(bundle: Path, dialect: str) -> Iterator[OrtSession]:
    model = load_bundle(
        open_bundle(bundle), dialect=dialect, max_sequences=4, threads=1, prefill_chunk=64
    )
    assert isinstance(model.session, OrtSession)
    yield model.session
    model.session.close()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(CONTEXT)


@pytest.fixture(scope="module")
def expected(folders: tuple[Path, Path], tokens: list[int]) -> Array:
    return reference_logits(folders[0], tokens)


def close(actual: Array, wanted: Array) -> None:
    # Weights and embedding are stored in float16, hence not the reference's bits.
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=4e-3 * float(np.abs(wanted).max()))


def test_prefill_equals_reference(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """A prompt prefilled in chunks, over two cache tiers, gives the reference's logits."""
    close(session.prefill(0, tokens[:600], all_logits=True), expected[:600])


def test_decode_equals_prefill(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """Token by token over a tier boundary gives the same logits as prefill."""
    session.prefill(1, tokens[:250])
    for position in range(250, 262):
        logits = session.decode([1], [tokens[position]], [position])
        close(logits[0], expected[position])


def test_slots_do_not_disturb_each_other(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """Interleaved sequences of different lengths, some idle, keep their own logits."""
    starts = {0: 40, 1: 7, 3: 130}
    for slot, start in starts.items():
        close(session.prefill(slot, tokens[:start]), expected[start - 1])
    for step, slots in enumerate([[0, 1, 3], [3], [1, 0], [0, 3], [0, 1, 3]]):
        positions = [starts[slot] for slot in slots]
        logits = session.decode(slots, [tokens[p] for p in positions], positions)
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            close(logits[row], expected[position])
            starts[slot] += 1
        assert step >= 0


def test_a_step_runs_the_smallest_block_that_has_its_slots(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """Slots 2 and 3 are a batch of two, 1 and 2 need all four; logits are each one's own."""
    for slot in range(4):
        session.prefill(slot, tokens[: 20 + slot])
    for slots, block in (([3, 2], (2, 2)), ([1, 2], (0, 4)), ([0, 1], (0, 2)), ([2], (2, 1))):
        positions = [20 + slot for slot in slots]
        logits = session.decode(slots, [tokens[at] for at in positions], positions)
        for row, at in enumerate(positions):
            close(logits[row], expected[at])
        assert block in {key[:2] for key in session._steps}


def test_a_slot_can_be_given_what_another_holds(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """The copy goes on by itself, the other is as it was, and what is not there is refused."""
    session.prefill(0, tokens[:300])
    session.prefill(2, tokens[5:40])
    assert session.copy_prefix(0, 2, 270)
    close(session.prefill(2, tokens[270:290], 270), expected[289])
    close(session.decode([0, 2], [tokens[300], tokens[290]], [300, 290])[0], expected[300])
    for source, target, count in ((0, 0, 1), (0, 2, 302), (1, 2, 1), (0, 1, 0)):
        with pytest.raises(EngineError, match="has no"):
            session.copy_prefix(source, target, count)


def test_going_back_overwrites(session: OrtSession, tokens: list[int], expected: Array) -> None:
    """Feeding an earlier position again forgets what followed."""
    session.prefill(0, [1, 2, 3, 4, 5, 6])
    session.prefill(0, tokens[:30])
    session.prefill(0, [9, 9, 9], start=20)
    close(session.prefill(0, tokens[20:31], start=20), expected[30])


def test_context_can_be_filled_to_the_last_token(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """A slot holds exactly max_context tokens, and the next one is refused by name."""
    session.prefill(2, tokens[: CONTEXT - 1])
    close(session.decode([2], [tokens[-1]], [CONTEXT - 1])[0], expected[-1])
    with pytest.raises(ContextOverflowError, match=f"context of {CONTEXT}"):
        session.decode([2], [0], [CONTEXT])
    session.prefill(0, tokens[:5])
    close(session.decode([0, 2], [tokens[5], tokens[-1]], [5, CONTEXT - 1])[0], expected[5])


def test_nan_is_reported_and_cleaned_up(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """A NaN in a cache is reported, its slot is zeroed, the others live on."""
    session.prefill(0, tokens[:10])
    session.prefill(1, tokens[:10])
    damaged = session._cache._buffers[0]
    assert isinstance(damaged, HostBuffer)
    shape = session._cache.shape(4)
    damaged.array[: math.prod(shape)].reshape(shape)[1, 0, 3, 0] = np.nan
    with pytest.raises(EngineError, match="slot 1"):
        session.decode([0, 1], [tokens[10], tokens[10]], [10, 10])
    close(session.decode([0], [tokens[10]], [10])[0], expected[10])
    close(session.prefill(1, tokens[:12]), expected[11])


@pytest.mark.parametrize(
    ("slots", "positions", "message"),
    [
        ([9], [0], "no slot 9"),
        ([0], [5], "holds 0 tokens"),
        ([1, 1], [0, 0], "repeat"),
        ([], [], "are empty"),
    ],
)
def test_misuse_is_refused(
    session: OrtSession, slots: list[int], positions: list[int], message: str
) -> None:
    """Unknown slots, gaps and repeated slots are errors that name them."""
    with pytest.raises(EngineError, match=message):
        session.decode(slots, [0] * len(slots), positions)


def test_caches_are_as_wide_as_the_longest_slot(
    session: OrtSession, tokens: list[int], expected: Array
) -> None:
    """Release and a new prompt narrow the caches, and what other slots hold survives that."""
    session.prefill(0, tokens[:300])
    session.prefill(2, tokens[:40])
    assert session._cache.capacity == 320
    session.release(0)
    assert session._cache.capacity == 64
    close(session.decode([2], [tokens[40]], [40])[0], expected[40])
    session.prefill(1, tokens[:300])
    assert session._cache.capacity == 320
    close(session.prefill(1, tokens[:20]), expected[19])
    assert session._cache.capacity == 64
    close(session.decode([1, 2], [tokens[20], tokens[41]], [20, 41])[1], expected[41])


def test_decode_shapes_are_bound_once(session: OrtSession, tokens: list[int]) -> None:
    """Steps of one tier share their buffers; only captured graphs outlive a change of tier."""

    def cross_a_tier() -> None:
        session.prefill(0, tokens[:255])
        session.decode([0], [1], [255])
        session.decode([0], [1], [256])
        session.prefill(0, tokens[:5])

    cross_a_tier()
    session.decode([0], [1], [5])
    session.decode([0], [1], [6])
    assert sorted(session._steps) == [(0, 1, 64)]
    session._cuda_graph = True
    step = session._decode_step(0, 1)
    cross_a_tier()
    assert sorted(session._steps) == [(0, 1, 64), (0, 1, 320)]
    assert session._decode_step(0, 1) is step
    session._cuda_graph = False


def test_only_decode_steps_are_captured(session: OrtSession) -> None:
    """A CUDA graph has its own id for good; every other step says explicitly that it has none."""
    session._cuda_graph = True
    ids = {session._decode_step(*shape)._graph_id for shape in [(0, 1), (1, 1), (0, 4), (0, 1)]}
    assert ids == {"1", "2", "3"}
    session._cuda_graph = False
    assert session._decode_step(2, 1)._graph_id == "-1"


COPIED = "in-place optimization not activated, copying"
"""What ONNX Runtime's TensorScatter logs when it must copy a cache before it writes to it."""


def test_caches_are_updated_in_place(
    standard_session: OrtSession,
    tokens: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Prefill and decode, one slot and several, copy no cache; an unbound run does."""
    import onnxruntime as ort

    session, real = standard_session, ort.RunOptions

    def verbose() -> Any:
        options = real()
        options.log_severity_level = 0
        return options

    monkeypatch.setattr(ort, "RunOptions", verbose)
    session.prefill(0, tokens[:70])
    session.prefill(1, tokens[:5])
    session.decode([0], [tokens[70]], [70])
    session.decode([0, 1], [tokens[71], tokens[5]], [71, 5])
    assert COPIED not in capfd.readouterr().err
    step = next(iter(session._steps.values()))
    shape = session._cache.shape(len(step.inputs.arrays[engine_io.INPUT_IDS]))
    caches = {
        name.name: np.zeros(shape, np.float32)
        for name in session._session.get_inputs()
        if name.name.startswith("past_")
    }
    session._session.run(None, {**step.inputs.arrays, **caches}, verbose())
    assert capfd.readouterr().err.count(COPIED) == len(caches)


@pytest.mark.parametrize("tokens", [[], [4096], [-1], [3, 1 << 40]])
def test_tokens_the_model_lacks_are_refused(session: OrtSession, tokens: list[int]) -> None:
    """No tokens, and ids outside the vocabulary, are errors before the engine sees them."""
    with pytest.raises(EngineError, match=r"no tokens|not in the vocabulary"):
        session.prefill(0, tokens)


def test_an_engine_failure_is_an_engine_error(session: OrtSession) -> None:
    """What ONNX Runtime raises in a step comes out as edgekit's error, in one line."""
    session.prefill(0, [1, 2])
    session._decode_step(0, 1).inputs.arrays[engine_io.LOGITS_INDEX][:] = 99
    with pytest.raises(EngineError, match="failed in a step") as caught:
        session.decode([0], [3], [2])
    assert "\n" not in str(caught.value)


def test_closing_twice_is_harmless(folders: tuple[Path, Path]) -> None:
    """Close frees the caches, and may be called again."""
    model = load_bundle(open_bundle(folders[1]), threads=1)
    model.session.close()
    model.session.close()
    assert not hasattr(model.session, "_cache")


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_change_of_tier_keeps_the_rows_in_use(
    session: OrtSession, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Rows survive growing and narrowing in place, in both kinds of memory, to the bit."""
    slots, heads, dim, layers = 3, 2, 4, 2
    if kind == "device":
        # The accelerator's code on the CPU device: the same OrtValue views and copies.
        monkeypatch.setattr(
            ort_cache,
            "HostBuffer",
            lambda count, dtype: DeviceBuffer(count, dtype, "cpu", session._session),
        )
    cache = KeyValueCache(None, layers, (slots, heads, 24, dim), np.float32, "cpu", 4)
    lengths = [4, 0, 3]
    rng = np.random.default_rng(0)

    def view(index: int) -> Array:
        shape = cache.shape(slots)
        pointer = ctypes.cast(cache.pointer(index, 0), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, (math.prod(shape),)).reshape(shape)

    held = []
    for index in range(2 * layers):
        view(index)[:] = rng.standard_normal(cache.shape(slots))
        held.append([view(index)[s, :, :n].copy() for s, n in enumerate(lengths)])
    for capacity in (8, 24, 9, 5, 24, 4):
        cache.resize(capacity, lengths)
        for index in range(2 * layers):
            for slot, rows in enumerate(held[index]):
                np.testing.assert_array_equal(view(index)[slot, :, : lengths[slot]], rows)
    cache.zero([2])
    assert not view(3)[2].any()
    np.testing.assert_array_equal(view(3)[0], held[3][0])


@pytest.mark.parametrize(
    ("rows", "doubling", "fine"),
    [
        (1, 256, 64),
        (63, 256, 64),
        (64, 256, 128),
        (255, 256, 256),
        (256, 512, 320),
        (600, 704, 640),
        (700, 704, 704),
    ],
)
def test_tiers_keep_a_row_for_idle_writes(rows: int, doubling: int, fine: int) -> None:
    """Capacity stays above the rows held, ends just above the context, and grows as told."""
    assert tier_for(rows, CONTEXT, 1) == doubling
    assert tier_for(rows, CONTEXT, 8) == fine


@pytest.mark.parametrize("rows", [1000, 2048, 2049, 4000])
def test_fine_tiers_waste_an_eighth_at_most(rows: int) -> None:
    """Where rows are many, attention spans few that are not held."""
    assert rows < tier_for(rows, 8192, 8) <= rows * 1.125 + 1


def test_the_ort_graph_is_run_where_there_is_one(folders: tuple[Path, Path]) -> None:
    """It is the faster one; another can be asked for, and one that is not there is named."""
    bundle = open_bundle(folders[1])
    assert [graph.name for graph in bundle.manifest.graphs] == ["standard.float32", "ort.float32"]
    assert graph_to_run(bundle, "cpu").name == "ort.float32"
    with pytest.raises(BundleError, match="no graph of dialect trt103"):
        load_bundle(bundle, dialect="trt103")


def test_a_captured_step_is_told_its_tiers_width(session: OrtSession) -> None:
    """A CUDA graph keeps the total length it was captured with: one that does for all its steps."""
    names = {value.name for value in session._session.get_inputs()}
    for device, totals in (("cpu", [4, 31]), ("cuda", [64, 64])):
        inputs = step_inputs(names, (2, 1, 1), 64, device)
        found = []
        for position in (3, 30):
            inputs.set_idle(np.array([0, 0]))
            inputs.set_row(1, 7, position)
            if engine_io.SEQLENS_K in names:
                found.append(int(inputs.arrays[engine_io.TOTAL_SEQUENCE_LENGTH][0]))
                assert inputs.arrays[engine_io.SEQLENS_K].tolist() == [0, position]
        assert found in ([], totals)


def test_missing_provider_is_an_error(folders: tuple[Path, Path]) -> None:
    """CUDA that is not there is an error with a remedy, never a quiet fallback."""
    with pytest.raises(EngineError, match="no CUDAExecutionProvider"):
        load_bundle(open_bundle(folders[1]), provider="cuda")
