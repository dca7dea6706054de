"""``trt.runtime`` on TensorRT (or TensorRT-RTX) and NVIDIA's CUDA bindings for Python."""

from __future__ import annotations

import ctypes
import importlib
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EngineError, MissingExtraError
from edgekit.trt.module import BuilderInfo, MessageLog, load_module
from edgekit.trt.runtime import Bytes, Pitched, Replay, Shape

_MODULE = "cuda.bindings.runtime"
_BINDINGS = "Install the cuda-bindings of this machine's CUDA: 12.x on JetPack 6.2, 13.x on 7.2"
_REMEDIES = {
    "memory": "Free memory, or run fewer sequences at once",
    "driver version": _BINDINGS,
    "no CUDA-capable device": "Look for the GPU with `nvidia-smi`; a container needs "
    "--runtime nvidia",
}
"""By what CUDA says."""


def load_cuda() -> Any:
    """Import CUDA's runtime bindings.

    Raises:
        MissingExtraError: They are not installed.
        EngineError: They do not load.
    """
    try:
        return importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        raise MissingExtraError("Running a TensorRT engine", "tensorrt") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(
            f"{_MODULE} does not load: {' '.join(str(error).split())}",
            _BINDINGS,
        ) from error


class Cuda:
    """CUDA's runtime with errors as exceptions.

    Args:
        module: ``cuda.bindings.runtime``.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; returns its one result, or None.

        Raises:
            EngineError: It fails.
        """
        error, *results = getattr(self.module, name)(*arguments)
        if int(error) != 0:
            _, said = self.module.cudaGetErrorString(error)
            text = said.decode() if isinstance(said, bytes) else str(said)
            remedy = next((advice for word, advice in _REMEDIES.items() if word in text), "")
            raise EngineError(f"CUDA failed in {name}: {text}", remedy)
        return results[0] if results else None


class CudaRuntime:
    """An engine's file loaded on the first GPU.

    Args:
        path: The engine.
        info: The TensorRT that built it.
        cuda: CUDA's bindings; None loads them.

    Raises:
        EngineError: TensorRT refuses the engine, or CUDA fails.
        MissingExtraError: CUDA's bindings are not installed.
    """

    def __init__(self, path: Path, info: BuilderInfo, cuda: Any = None) -> None:
        self._trt = load_module(info)
        self._cuda = Cuda(cuda or load_cuda())
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._contexts: list[Any] = []
        self._log = MessageLog()
        self._stream = self._cuda.call("cudaStreamCreate")
        self._runtime = self._trt.Runtime(self._log.logger(self._trt))
        # Mapped: the file's pages are the system's to drop, no copy of the weights is held.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            self.close()
            raise EngineError(
                f"{info.name} {info.version} refuses the engine {path.name}: {self._log.reason()}",
                "Remove it and build it again with `edgekit engine build`",
            )

    def tensors(self) -> Mapping[str, Any]:
        """Return the NumPy dtype of each input and output."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        return {name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))) for name in names}

    def context(self, profile: int) -> CudaContext:
        """Return a new context of the engine's profile number ``profile``."""
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        # A context takes the scratch memory of its own profile, not of the largest.
        chosen = () if strategies is None else (strategies.ON_PROFILE_CHANGE,)
        context = self._engine.create_execution_context(*chosen)
        stream = int(self._stream)
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise EngineError(
                f"TensorRT makes no context of profile {profile}: {self._log.reason()}",
                "Free memory, or run fewer sequences at once",
            )
        self.synchronize()
        self._contexts.append(context)
        return CudaContext(context, self._cuda, self._stream, self._log, self._graphs)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory, zeroed."""
        address = int(self._cuda.call("cudaMalloc", size_bytes))
        self._device.append(address)
        self.zero(address, size_bytes)
        return address

    def host(self, size_bytes: int) -> Bytes:
        """Return zeroed main memory that the GPU reads directly."""
        address = int(self._cuda.call("cudaHostAlloc", size_bytes, 0))
        self._pinned.append(address)
        memory = (ctypes.c_uint8 * size_bytes).from_address(address)
        array: Bytes = np.ctypeslib.as_array(memory)
        array[:] = 0
        return array

    def upload(self, address: int, data: Bytes) -> None:
        """Copy to the device."""
        self._copy(address, data.ctypes.data, data.nbytes, "cudaMemcpyHostToDevice")

    def download(self, data: Bytes, address: int) -> None:
        """Copy from the device."""
        self._copy(data.ctypes.data, address, data.nbytes, "cudaMemcpyDeviceToHost")

    def zero(self, address: int, size_bytes: int) -> None:
        """Zero device memory."""
        self._cuda.call("cudaMemsetAsync", address, 0, size_bytes, self._stream)

    def copy(self, target: Pitched, source: Pitched, width: int, height: int) -> None:
        """Copy rows on the device."""
        kind = self._cuda.module.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        arguments = (*target, *source, width, height, kind, self._stream)
        self._cuda.call("cudaMemcpy2DAsync", *arguments)

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        self._cuda.call("cudaStreamSynchronize", stream)
        self._contexts.clear()
        self._engine = self._runtime = None
        for name, things in (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaFree", self._device),
            ("cudaFreeHost", self._pinned),
        ):
            while things:
                self._cuda.call(name, things.pop())
        self._cuda.call("cudaStreamDestroy", stream)

    def _copy(self, target: int, source: int, size_bytes: int, kind: str) -> None:
        kinds = self._cuda.module.cudaMemcpyKind
        self._cuda.call(
            "cudaMemcpyAsync", target, source, size_bytes, getattr(kinds, kind), self._stream
        )


class CudaContext:
    """One execution context on its runtime's stream; made by :meth:`CudaRuntime.context`."""

    def __init__(
        self, context: Any, cuda: Cuda, stream: Any, log: MessageLog, graphs: list[Any]
    ) -> None:
        self._context, self._cuda, self._stream = context, cuda, stream
        self._log, self._graphs = log, graphs

    def bind(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Set the inputs' shapes and every tensor's address."""
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, tuple(shape)):
                raise EngineError(f"TensorRT refuses {name} of {shape}: {self._log.reason()}")
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT refuses an address of {name}: {self._log.reason()}")

    def enqueue(self) -> None:
        """Run once with what is bound."""
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT failed in a step: {self._log.reason()}")

    def capture(self) -> Replay | None:
        """Record a run as a CUDA graph; see ``runtime.Context``."""
        cuda, stream = self._cuda, self._stream
        # RTX says beforehand; TensorRT lacks the method and its decode steps can be captured.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(int(stream)):
            return None
        mode = cuda.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", stream, mode)
        enqueued = self._context.execute_async_v3(int(stream))
        # The capture is ended whatever happened, or the stream would be of no more use.
        error, graph = cuda.module.cudaStreamEndCapture(stream)
        if not enqueued or int(error) != 0:
            return None
        executable = cuda.call("cudaGraphInstantiate", graph, 0)
        cuda.call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return lambda: cuda.call("cudaGraphLaunch", executable, stream)
