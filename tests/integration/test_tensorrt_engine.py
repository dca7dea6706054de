"""The TensorRT session against the real builder: TensorRT-RTX, which runs nothing without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeContext, FakeCuda, FakeEngine, FakeTensorRT, write_engine
from session_cases import random_tokens
from tensorrt_cases import INFO
from trt_cases import small_bundle

from edgekit.bundle.reader import Bundle
from edgekit.contracts.engine_plan import input_shapes
from edgekit.engine.load import open_session
from edgekit.engine.session import InferenceSession
from edgekit.engine.tensorrt import TensorRTSession
from edgekit.engine.tensorrt_step import DeviceCache
from edgekit.errors import EngineError
from edgekit.models.config import ModelConfig
from edgekit.models.exported import stored_config
from edgekit.trt.cuda import CudaRuntime
from edgekit.trt.device_build import engine_plan, find_machine, obtain_engine
from edgekit.trt.engine_cache import EngineCache
from edgekit.trt.module import MessageLog, find_builder, load_module
from edgekit.trt.specialize import specialize

SLOTS = 2
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def trt() -> Any:
    return load_module(find_builder())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("engine"), recipe="w8a16")


@pytest.fixture(scope="module")
def fake(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    """The bundle's engine as the fake has it."""
    plan = engine_plan(bundle.manifest)
    path = tmp_path_factory.mktemp("fake") / "engine"
    write_engine(path, bundle.path / bundle.graph("target").path, plan)
    engine = FakeTensorRT(FakeCuda()).Runtime(None).deserialize_cuda_engine(path.read_bytes())
    assert isinstance(engine, FakeEngine)
    return engine


@pytest.mark.parametrize(
    ("fake_class", "name"),
    [(FakeEngine, "ICudaEngine"), (FakeContext, "IExecutionContext"), (FakeTensorRT, "")],
)
def test_the_fake_has_nothing_that_tensorrt_lacks(trt: Any, fake_class: Any, name: str) -> None:
    """Every method of the fake is one of the real module, so the session calls no other."""
    real = getattr(trt, name) if name else trt
    own = [n for n in vars(fake_class) if not n.startswith("_")]
    assert own
    assert [n for n in own if not hasattr(real, n)] == []
    assert hasattr(trt.Runtime, "deserialize_cuda_engine")
    assert hasattr(trt.ExecutionContextAllocationStrategy, "ON_PROFILE_CHANGE")


def test_the_fake_binds_what_the_real_parser_makes(
    trt: Any, bundle: Bundle, fake: FakeEngine
) -> None:
    """Names, types and the profiles' shapes of the fake are those of the real network."""
    plan = engine_plan(bundle.manifest)
    path = bundle.path / bundle.graph("target").path
    model = onnx.load(path, load_external_data=False)
    specialize(model, plan.cache_capacity)
    logger = MessageLog().logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString(), str(path))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert {t.name for t in inputs} == set(fake.inputs)
    assert {t.name for t in outputs} == set(fake.outputs)
    for tensor in (*inputs, *outputs):
        assert np.dtype(trt.nptype(tensor.dtype)) == np.dtype(fake.get_tensor_dtype(tensor.name))
    for tensor in inputs:
        real, ours = tuple(tensor.shape), fake.inputs[tensor.name].shape
        dims = tuple(d if isinstance(d, int) else -1 for d in ours)
        for profile in plan.profiles:
            shapes = input_shapes(plan, profile, tensor.name, real)
            assert shapes == input_shapes(plan, profile, tensor.name, dims)


def test_the_real_runtime_says_that_there_is_no_driver(bundle: Bundle, tmp_path: Path) -> None:
    """A real engine, deserialized by the real module on a machine without a driver, is refused."""
    engine = obtain_engine(bundle, EngineCache(tmp_path), find_machine())
    cuda = FakeCuda()
    with pytest.raises(EngineError, match=r"refuses the engine .*driver version is insufficient"):
        CudaRuntime(engine.path, find_machine().builder, cuda)
    engine.release()
    assert cuda.calls[-1] == "cudaStreamDestroy"


@pytest.mark.parametrize(("target", "recipe"), [("orin", "w8a16"), ("orin-jp62", "w4a16-g32")])
def test_float16_targets_answer_as_onnx_runtime(
    target: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each target's graph as TensorRT parses it, in float16: caches in place, or appended to."""
    bundle = small_bundle(tmp_path, target, recipe)
    session, other = open_both(bundle, tmp_path, monkeypatch)
    tokens = [token % session.vocab_size for token in random_tokens(40)]

    def same(given: Array, wanted: Array) -> None:
        np.testing.assert_allclose(given, wanted, rtol=0, atol=4e-3 * float(np.abs(wanted).max()))

    for slot in range(SLOTS):
        for start, stop in ((0, 20), (20, 30 + slot), (25, 30 + slot)):
            piece = tokens[start:stop]
            given = session.prefill(slot, piece, start, all_logits=True)
            same(given, other.prefill(slot, piece, start, all_logits=True))
    steps: list[tuple[list[int], list[int]]] = [
        ([1, 0], [31, 30]), ([1], [32]), ([1], [33]), ([0, 1], [31, 34]), ([0], [32]), ([1], [35]),
        ([0, 1], [33, 36]), ([1, 0], [30, 34]),
    ]  # fmt: skip
    for slots, positions in steps:
        fed = [tokens[position] for position in positions]
        same(session.decode(slots, fed, positions), other.decode(slots, fed, positions))
    assert session.captured == 3
    session.close()
    other.close()


def open_both(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[TensorRTSession, InferenceSession]:
    """Open a bundle's target graph on the fake and in ONNX Runtime, as it is written."""
    cuda, plan = FakeCuda(), engine_plan(bundle.manifest)
    monkeypatch.setitem(sys.modules, INFO.module, FakeTensorRT(cuda))
    entry = bundle.graph("target")
    path = write_engine(folder / "engine", bundle.path / entry.path, plan)
    config = stored_config(bundle.manifest.model["config"])
    assert isinstance(config, ModelConfig)
    runtime = CudaRuntime(path, INFO, cuda)
    options = {"threads": 1, "exact": True, "max_sequences": SLOTS}
    return (
        TensorRTSession(runtime, plan, config=config, max_sequences=SLOTS),
        open_session(bundle, entry, config, "cpu", options),
    )


def test_slots_that_tensorrt_cannot_address_are_refused() -> None:
    """A slot that does not begin at a multiple of 256 bytes is said before any memory is taken."""
    runtime: Any = None
    with pytest.raises(EngineError, match=r"6440 bytes, TensorRT wants a multiple of 256.*128"):
        DeviceCache(runtime, 1, (2, 2, 115, 14), np.dtype(np.float16))
