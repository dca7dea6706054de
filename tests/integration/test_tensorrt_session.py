"""The TensorRT session and its CUDA layer, on a fake GPU that runs the bundle's own graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import MODULE, FakeCuda, FakeTensorRT, write_engine
from session_cases import random_tokens, reference_logits
from tensorrt_cases import CONTEXT, INFO, SLOTS, float_bundle, plan_of

from edgekit.bundle.reader import Bundle
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.engine.load import load_bundle
from edgekit.engine.ort import OrtSession
from edgekit.engine.tensorrt import TensorRTSession
from edgekit.errors import ContextOverflowError, EngineError
from edgekit.evaluate.golden import GoldenLimits, check_golden
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.models.config import ModelConfig
from edgekit.models.exported import stored_config
from edgekit.trt.cuda import CudaRuntime

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return float_bundle(tmp_path_factory.mktemp("tensorrt"))


@pytest.fixture(scope="module")
def plan(bundle: Bundle) -> EnginePlan:
    return plan_of(bundle)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def session(
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TensorRTSession]:
    opened = open_fake(bundle, plan, cuda, tmp_path, monkeypatch)
    yield opened
    opened.close()  # the fake fails if any memory is left


def open_fake(
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    capturable: bool = True,
    **options: Any,
) -> TensorRTSession:
    """Open the bundle's standard graph on the fake GPU."""
    monkeypatch.setitem(sys.modules, MODULE, FakeTensorRT(cuda, capturable=capturable))
    graph = bundle.path / bundle.graph("host", "standard").path
    engine = write_engine(folder / "engine", graph, plan)
    config = stored_config(bundle.manifest.model["config"])
    assert isinstance(config, ModelConfig)
    runtime = CudaRuntime(engine, INFO, cuda)
    return TensorRTSession(runtime, plan, config=config, **{"max_sequences": SLOTS, **options})


@pytest.fixture
def other(bundle: Bundle) -> Iterator[OrtSession]:
    """The same graph in ONNX Runtime's own session."""
    model = load_bundle(bundle, dialect="standard", max_sequences=SLOTS, threads=1, digests=False)
    assert isinstance(model.session, OrtSession)
    yield model.session
    model.session.close()


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return random_tokens(CONTEXT)


def close(actual: Array, wanted: Array) -> None:
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-5 * float(np.abs(wanted).max()))


def test_prefill_is_the_other_sessions(
    session: TensorRTSession, other: OrtSession, tokens: list[int]
) -> None:
    """Chunks up to the cache's last row, all logits or the last, give ONNX Runtime's logits."""
    wanted = other.prefill(0, tokens, all_logits=True)
    close(session.prefill(1, tokens, all_logits=True), wanted)
    close(session.prefill(0, tokens), wanted[-1])
    close(session.prefill(2, tokens[:7]), wanted[6])
    close(session.prefill(2, tokens[7:9], start=7), wanted[8])
    close(session.prefill(2, tokens[3:50], start=3), wanted[49])
    assert (session.max_context, session.max_sequences) == (CONTEXT, SLOTS)


def test_a_slot_can_be_given_what_another_holds(
    session: TensorRTSession, other: OrtSession, tokens: list[int]
) -> None:
    """The copy goes on by itself, and what is not there is refused."""
    other.prefill(0, tokens[:50])
    session.prefill(0, tokens[:50])
    session.prefill(1, tokens[3:20])
    assert session.copy_prefix(0, 1, 45)
    close(session.prefill(1, tokens[45:50], 45), other.prefill(1, tokens[:50]))
    with pytest.raises(EngineError, match="has no 51"):
        session.copy_prefix(0, 1, 51)


def test_logits_are_the_references(
    session: TensorRTSession, bundle: Bundle, tokens: list[int]
) -> None:
    """Prefill, then every later token decoded, gives the NumPy reference's logits."""
    wanted = reference_logits(bundle.path.parent / "checkpoint", tokens)
    least = 4e-3 * float(np.abs(wanted).max())  # weights are stored in float16
    given = [session.prefill(1, tokens[:90])]
    given += [session.decode([1], [tokens[at]], [at])[0] for at in range(90, CONTEXT)]
    np.testing.assert_allclose(given, wanted[89:], rtol=0, atol=least)


def test_ragged_decode_is_the_other_sessions(
    session: TensorRTSession, other: OrtSession, tokens: list[int]
) -> None:
    """Interleaved sequences of different lengths, some idle, in every batch."""
    at = {0: 40, 1: 7, 2: 13}
    for slot, count in at.items():
        close(session.prefill(slot, tokens[:count]), other.prefill(slot, tokens[:count]))
    rounds = [[0, 1, 2], [2], [1, 0], [0, 2], [2, 0, 1], [1], [2], [1, 0], [0, 1, 2], [0]]
    for slots in rounds:
        positions = [at[slot] for slot in slots]
        fed = [tokens[position] for position in positions]
        close(session.decode(slots, fed, positions), other.decode(slots, fed, positions))
        for slot in slots:
            at[slot] += 1


def test_decode_allocates_nothing_and_replays(
    session: TensorRTSession, cuda: FakeCuda, tokens: list[int]
) -> None:
    """From a shape's second step on: one copy there, one graph, one copy back."""
    session.prefill(0, tokens[:5])
    session.decode([0], [tokens[5]], [5])
    assert len(cuda.graphs) == 1
    cuda.calls.clear()
    session.decode([0], [tokens[6]], [6])
    assert cuda.calls == [
        "cudaMemcpyAsync", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaStreamSynchronize",
    ]  # fmt: skip
    memory = (dict(cuda.device), dict(cuda.pinned))
    session.prefill(1, tokens)
    assert (dict(cuda.device), dict(cuda.pinned)) == memory
    for position in (7, 8):
        session.prefill(1, tokens[:5])
        session.decode([0, 1], [1, 1], [position, 5])
    assert len(cuda.graphs) == 2


@pytest.mark.parametrize("options", [{"capturable": False}, {"cuda_graph": False}])
def test_without_cuda_graphs_the_logits_are_the_same(
    options: dict[str, bool],
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    other: OrtSession,
    tokens: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that cannot be captured runs step by step; one context serves two slots."""
    session = open_fake(bundle, plan, cuda, tmp_path, monkeypatch, **options)
    for slot in (0, 1):
        session.prefill(slot, tokens[: 5 + slot])
        other.prefill(slot, tokens[: 5 + slot])
    for step in range(3):
        for slot in (0, 1):
            position = 5 + slot + step
            fed = ([slot], [tokens[position]], [position])
            close(session.decode(*fed), other.decode(*fed))
    assert not cuda.graphs
    session.close()


def test_a_full_idle_slot_is_left_alone(
    session: TensorRTSession, other: OrtSession, tokens: list[int]
) -> None:
    """A sequence that fills its cache has no row to write to while others are decoded."""
    for engine in (session, other):
        engine.prefill(1, tokens[:99])
        engine.prefill(0, tokens[:4])
        engine.prefill(2, tokens[:6])
    last = ([1], [tokens[99]], [99])
    close(session.decode(*last), other.decode(*last))
    for step in range(2):
        fed = ([0, 2], [tokens[4 + step], tokens[6 + step]], [4 + step, 6 + step])
        close(session.decode(*fed), other.decode(*fed))
    close(session.decode(*last), other.decode(*last))
    with pytest.raises(ContextOverflowError, match=f"context of {CONTEXT}"):
        session.decode([1], [0], [CONTEXT])
    session.release(1)
    with pytest.raises(EngineError, match="holds 0 tokens"):
        session.decode([1], [0], [4])


def test_nan_is_reported_and_cleaned_up(
    session: TensorRTSession, other: OrtSession, tokens: list[int]
) -> None:
    """A NaN in a cache is reported, its slot is zeroed, the others go on at the same position."""
    for slot in (0, 1):
        session.prefill(slot, tokens[:10])
        other.prefill(slot, tokens[:10])
    # In a row that is masked now and that no later step writes: only zeroing takes it away.
    address = session._cache.addresses(1)["past_value_0"] + 50 * session.config.head_dim * 4
    session._runtime.upload(address, np.full(4, 0xFF, np.uint8))
    with pytest.raises(EngineError, match="slot 1"):
        session.decode([0, 1], [tokens[10]] * 2, [10, 10])
    with pytest.raises(EngineError, match="slot 1 holds 0 tokens"):
        session.decode([1], [tokens[10]], [10])
    again = ([0], [tokens[10]], [10])
    close(session.decode(*again), other.decode(*again))
    close(session.prefill(1, tokens[:12]), other.prefill(1, tokens[:12]))
    session._runtime.upload(address, np.full(4, 0xFF, np.uint8))
    with pytest.raises(EngineError, match="slot 1"):
        session.prefill(1, tokens[12:14], start=12)


@pytest.mark.parametrize(
    ("slots", "positions", "message"),
    [([9], [0], "no slot 9"), ([0], [5], "holds 0"), ([1, 1], [0, 0], "repeat"), ([], [], "empty")],
)
def test_misuse_is_refused(
    session: TensorRTSession, slots: list[int], positions: list[int], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        session.decode(slots, [0] * len(slots), positions)


def test_golden_sequences_pass(session: TensorRTSession, bundle: Bundle) -> None:
    """What `verify` runs passes at the engine's own limits."""
    golden = GoldenSet.from_dict(bundle.golden())
    limits = GoldenLimits(kl_divergence_nats_max=1e-3, mean_abs_difference_nats_max=0.02)
    assert check_golden(session, golden, limits).passed


def test_no_memory_is_an_error_that_frees_what_was_taken(
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An open that runs out of memory says so; closing gives back what it took."""
    cuda.limit_bytes = 300_000
    with pytest.raises(EngineError, match=r"out of memory\. Free memory, or run fewer"):
        open_fake(bundle, plan, cuda, tmp_path, monkeypatch)


def test_an_old_driver_is_told_which_bindings_fit(
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "cudaStreamCreate", lambda: (35, None))
    with pytest.raises(EngineError, match=r"driver version is insufficient.*13\.x on 7\.2"):
        open_fake(bundle, plan, cuda, tmp_path, monkeypatch)


def test_more_sequences_than_the_plan_has_are_refused(
    bundle: Bundle,
    plan: EnginePlan,
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(EngineError, match="decodes 4 sequences at once, not 5"):
        open_fake(bundle, plan, cuda, tmp_path, monkeypatch, max_sequences=5)


def test_an_engine_that_tensorrt_refuses_is_named(
    cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULE, FakeTensorRT(cuda))
    path = tmp_path / "engine"
    path.write_bytes(b"another version's")
    with pytest.raises(EngineError, match="refuses the engine engine: magic tag does not match"):
        CudaRuntime(path, INFO, cuda)
    assert cuda.calls[-1] == "cudaStreamDestroy"
