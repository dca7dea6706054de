"""TensorRT and CUDA without a GPU: engines are ONNX graphs that ONNX Runtime runs where they stand.

Strict where a GPU is merciless: device memory holds NaN until it is written, nothing happens before
the stream is synchronized, an address must be aligned and lie in memory that was allocated, a shape
in its profile, a profile is one context's, and a captured step keeps its shapes and addresses. The
graph that runs is the one the builder parses, not the one that the bundle stores.
"""

from __future__ import annotations

import base64
import ctypes
import json
import types
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgekit.contracts import engine_io
from edgekit.contracts.engine_plan import EnginePlan, input_shapes
from edgekit.trt.specialize import specialize

MODULE = "fake_tensorrt_module"
Work = Callable[[], object]
_TYPES: dict[str, Any] = {
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def write_engine(path: Path, graph: Path, plan: EnginePlan) -> Path:
    """Write what :class:`FakeTensorRT` takes for an engine."""
    model = onnx.load(graph)
    specialize(model, plan.cache_capacity)
    parsed = base64.b64encode(model.SerializeToString()).decode()
    path.write_text(json.dumps({"graph": parsed, "plan": plan.to_dict()}))
    return path


class Kind(IntEnum):
    """cudaMemcpyKind."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class FakeCuda:
    """``cuda.bindings.runtime``: one stream whose work is done when it is waited for.

    Attributes:
        calls: Names of the functions called.
        device: Device memory by address.
        limit_bytes: Device memory there is.
    """

    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.limit_bytes = 1 << 40
        self._queue: list[Work] = []
        self._capture: list[Work] | None = None

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("cuda") and not name[4:5].islower() and "Kind" not in name:
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def enqueue(self, work: Work) -> None:
        (self._queue if self._capture is None else self._capture).append(work)

    def check(self, address: int, size_bytes: int) -> None:
        """Fail unless the bytes lie in one allocation."""
        assert any(
            base <= address and address + size_bytes <= base + memory.nbytes
            for base, memory in self.device.items()
        ), "an address outside device memory"

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        assert stream == 7
        assert not self.device
        assert not self.pinned
        assert not self.graphs
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert (stream, self._capture) == (7, None)
        while self._queue:
            self._queue.pop(0)()
        return (0,)

    def cudaMalloc(self, size_bytes: int) -> tuple[int, int | None]:
        assert self._capture is None, "memory taken while capturing"
        if sum(memory.nbytes for memory in self.device.values()) + size_bytes > self.limit_bytes:
            return 2, None
        memory = np.full(size_bytes + 256, 0xFF, np.uint8)
        at = -memory.ctypes.data % 256
        memory = memory[at : at + size_bytes]
        self.device[memory.ctypes.data] = memory
        return 0, memory.ctypes.data

    def cudaFree(self, address: int) -> tuple[int]:
        del self.device[address]
        return (0,)

    def cudaHostAlloc(self, size_bytes: int, flags: int) -> tuple[int, int]:
        assert flags == 0
        memory = np.full(size_bytes, 0xFF, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return 0, memory.ctypes.data

    def cudaFreeHost(self, address: int) -> tuple[int]:
        del self.pinned[address]
        return (0,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size_bytes: int, kind: Kind, stream: int
    ) -> tuple[int]:
        assert stream == 7
        self.check(target if kind == Kind.cudaMemcpyHostToDevice else source, size_bytes)
        self.enqueue(partial(ctypes.memmove, target, source, size_bytes))
        return (0,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: Kind,
        stream: int,
    ) -> tuple[int]:
        assert (kind, stream) == (Kind.cudaMemcpyDeviceToDevice, 7)
        assert width <= min(target_pitch, source_pitch)
        for start, pitch in ((target, target_pitch), (source, source_pitch)):
            self.check(start, pitch * (height - 1) + width)

        def copy() -> None:
            for row in range(height):
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

        self.enqueue(copy)
        return (0,)

    def cudaMemsetAsync(self, address: int, value: int, size_bytes: int, stream: int) -> tuple[int]:
        assert stream == 7
        self.check(address, size_bytes)
        self.enqueue(partial(ctypes.memset, address, value, size_bytes))
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        assert (stream, mode) == (7, 1)
        assert not self._queue, "work is pending where a capture begins"
        self._capture = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        assert stream == 7
        graph, self._capture = self._capture, None
        return 0, graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, int]:
        assert flags == 0
        self.graphs[len(self.graphs) + 1] = list(graph)
        return 0, len(self.graphs)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        graph.clear()
        return (0,)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[int]:
        del self.graphs[executable]
        return (0,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[int]:
        assert stream == 7
        for work in self.graphs[executable]:
            self.enqueue(work)
        return (0,)

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        said = {2: b"out of memory", 35: b"CUDA driver version is insufficient"}
        return 0, said[error]


class FakeTensorRT(types.ModuleType):
    """The module ``tensorrt``, as far as running an engine goes.

    Args:
        cuda: What its work is enqueued on.
        capturable: Whether its steps may be captured.
    """

    ExecutionContextAllocationStrategy = types.SimpleNamespace(ON_PROFILE_CHANGE=1)

    class ILogger:
        """Base of loggers."""

        Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2, INFO=3)

    def __init__(self, cuda: FakeCuda, *, capturable: bool = True) -> None:
        super().__init__(MODULE)
        self.cuda, self.capturable = cuda, capturable

    @staticmethod
    def nptype(dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> Any:
        def deserialize(data: Any) -> FakeEngine | None:
            try:
                return FakeEngine(self, json.loads(bytes(data)))
            except ValueError:
                logger.log(self.ILogger.Severity.ERROR, "magic tag does not match")
                return None

        return types.SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    """An ICudaEngine."""

    def __init__(self, module: FakeTensorRT, values: dict[str, Any]) -> None:
        self.module = module
        self.plan = EnginePlan.from_dict(values["plan"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # As it is written: optimized, stretches of a float16 graph would run in float32.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(
            base64.b64decode(values["graph"]), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {x.name: x for x in self.session.get_inputs()}
        self.outputs = {x.name: x for x in self.session.get_outputs()}
        self.names: list[str] = [*self.inputs, *self.outputs]
        self.used_profiles: set[int] = set()

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[{**self.inputs, **self.outputs}[name].type]

    def create_execution_context(self, strategy: int) -> FakeContext:
        assert strategy == 1
        return FakeContext(self)


class FakeContext:
    """An IExecutionContext."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile: Any = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 7
        if index in self.engine.used_profiles or self.profile is not None:
            return False
        self.engine.used_profiles.add(index)
        self.profile = self.engine.plan.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        dims = tuple(d if isinstance(d, int) else -1 for d in self.engine.inputs[name].shape)
        least, _, most = input_shapes(self.engine.plan, self.profile, name, dims)
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if fits:
            self.shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names and address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream == 7
        return self.engine.module.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        assert set(addresses) == set(self.engine.names)
        assert set(shapes) == set(self.engine.inputs)
        self.engine.module.cuda.enqueue(lambda: self._run(shapes, addresses))
        return True

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        binding = self.engine.session.io_binding()
        batch, wanted = shapes[engine_io.LOGITS_INDEX][:2]
        vocabulary = self.engine.outputs[engine_io.LOGITS].shape[2]
        for name in self.engine.names:
            is_input = name in self.engine.inputs
            if is_input:
                shape = shapes[name]
            elif name == engine_io.LOGITS:
                shape = (batch, wanted, vocabulary)
            elif name.startswith("new_"):
                _, heads, _, width = shapes[name.replace("new", "past")]
                shape = (batch, heads, shapes[engine_io.INPUT_IDS][1], width)
            else:
                past = name.replace("present", "past")
                assert addresses[name] == addresses[past], "a cache is not updated in place"
                shape = shapes[past]
            dtype = np.dtype(self.engine.get_tensor_dtype(name))
            self.engine.module.cuda.check(addresses[name], int(np.prod(shape)) * dtype.itemsize)
            bind = binding.bind_input if is_input else binding.bind_output
            bind(name, "cpu", 0, dtype.type, shape, addresses[name])
        self.engine.session.run_with_iobinding(binding)
