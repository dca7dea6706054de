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


def test_float16_with_int8_embedding_answers_as_onnx_runtime(
    bundle: Bundle, fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's own graph, as TensorRT parses it, in float16: both profiles, two slots."""
    cuda, plan = FakeCuda(), engine_plan(bundle.manifest)
    monkeypatch.setitem(sys.modules, INFO.module, FakeTensorRT(cuda))
    entry = bundle.graph("target")
    path = write_engine(tmp_path / "engine", bundle.path / entry.path, plan)
    config = stored_config(bundle.manifest.model["config"])
    assert isinstance(config, ModelConfig)
    session = TensorRTSession(
        CudaRuntime(path, INFO, cuda), plan, config=config, max_sequences=SLOTS
    )
    options = {"threads": 1, "exact": True, "max_sequences": SLOTS}
    other = open_session(bundle, entry, config, "cpu", options)
    tokens = [token % config.vocab_size for token in random_tokens(40)]
    for slot in range(SLOTS):
        given = session.prefill(slot, tokens[: 30 + slot], all_logits=True)
        wanted = other.prefill(slot, tokens[: 30 + slot], all_logits=True)
        np.testing.assert_allclose(given, wanted, atol=2e-2 * float(np.abs(wanted).max()))
    for at in range(3):
        step = ([1, 0], tokens[:2], [31 + at, 30 + at])
        wanted = other.decode(*step)
        limit = 2e-2 * float(np.abs(wanted).max())
        np.testing.assert_allclose(session.decode(*step), wanted, atol=limit)
    assert (session.captured, fake.num_io_tensors) == (1, len(fake.names))
    session.close()
    other.close()


def test_slots_that_tensorrt_cannot_address_are_refused() -> None:
    """A slot that does not begin at a multiple of 256 bytes is said before any memory is taken."""
    runtime: Any = None
    with pytest.raises(EngineError, match=r"6440 bytes, TensorRT wants a multiple of 256.*128"):
        DeviceCache(runtime, 1, (2, 2, 115, 14), np.dtype(np.float16))
