"""The TensorRT builder of this machine: ``tensorrt`` with its GPU, else TensorRT-RTX without one.

TensorRT needs a GPU to build; TensorRT-RTX (extra ``trt-check``) builds for GPUs that are not
there, with the same parser and API. Its engines do not run on an Orin: it only checks.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from edgekit.contracts.versions import in_range
from edgekit.errors import EngineError, MissingExtraError

RTX_SM = "8.6"
"""What TensorRT-RTX compiles for: of those it knows, the nearest to the Orin's 8.7."""
_RTX_MODULES = ("tensorrt_rtx", "tensorrt_rtx_bindings")
_MAJOR_ATTRIBUTE, _MINOR_ATTRIBUTE = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""

NO_GPU = "catchCudaError"
"""In what a builder without a GPU says of that, which is never the reason of a failure."""


@dataclass(frozen=True, slots=True)
class BuilderInfo:
    """A builder, before anything of it is loaded.

    Attributes:
        module: Python module.
        name: ``TensorRT`` or ``TensorRT-RTX``.
        version: Of the installed distribution.
        sm: Compute capability it compiles for, ``8.6``.
    """

    module: str
    name: Literal["TensorRT", "TensorRT-RTX"]
    version: str
    sm: str

    def meets(self, wanted: str) -> bool:
        """Whether it is a TensorRT of the versions a plan wants."""
        return self.name == "TensorRT" and in_range(self.version, wanted)


def find_builder() -> BuilderInfo:
    """Return this machine's builder.

    Raises:
        MissingExtraError: None is installed.
    """
    sm = gpu_sm()
    if sm is not None and importlib.util.find_spec("tensorrt") is not None:
        return BuilderInfo("tensorrt", "TensorRT", _version("tensorrt"), sm)
    for module in _RTX_MODULES:
        if importlib.util.find_spec(module) is not None:
            return BuilderInfo(module, "TensorRT-RTX", _version(module), RTX_SM)
    raise MissingExtraError("the TensorRT compile check", "trt-check")


def gpu_sm() -> str | None:
    """Return the compute capability of the first GPU that the CUDA driver sees, or None."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, numbers = ctypes.c_int(), []
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in (_MAJOR_ATTRIBUTE, _MINOR_ATTRIBUTE):
        number = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        numbers.append(str(number.value))
    return ".".join(numbers)


def load_module(info: BuilderInfo) -> ModuleType:
    """Import a builder.

    Raises:
        EngineError: It is installed and does not load.
    """
    try:
        return importlib.import_module(info.module)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{info.name} {info.version} does not load: {' '.join(str(error).split())}",
            "Install it again; `edgekit doctor` shows what was found",
        ) from error


def require_version(info: BuilderInfo, wanted: str) -> None:
    """Refuse to build an engine that is to run with another TensorRT than its plan's.

    Raises:
        EngineError: Names the version and the range.
    """
    if not info.meets(wanted):
        raise EngineError(
            f"the engine plan needs TensorRT {wanted}, this machine has {info.name} {info.version}",
            "Install that TensorRT, or build the bundle for this one's target",
        )


class MessageLog:
    """Collects what a builder says; becomes its ``ILogger`` by :meth:`logger`.

    Attributes:
        errors: Messages of severity error and internal error, in order.
        weights_bytes: What the builder says the engine's weights take; None until it does.
    """

    _WEIGHTS = "Total Weights Memory:"

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.weights_bytes: int | None = None

    def take(self, message: str, *, is_error: bool) -> None:
        """Keep an error, or read the weights' bytes from an information."""
        if is_error:
            self.errors.append(" ".join(message.split()))
        elif self._WEIGHTS in message:
            number = message.partition(self._WEIGHTS)[2].split()[0]
            self.weights_bytes = int(number)

    def reason(self) -> str:
        """Return the last error that says why a build failed."""
        reasons = [error for error in self.errors if NO_GPU not in error]
        return reasons[-1] if reasons else "it does not say why"

    def logger(self, trt: Any) -> Any:
        """Return an ``ILogger`` of module ``trt`` that writes here."""
        log = self
        fatal = {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}

        class Logger(trt.ILogger):  # type: ignore[misc]  # the base comes with the builder
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                log.take(message, is_error=severity in fatal)

        return Logger()


def _version(module: str) -> str:
    """Return a module's version from the distribution that holds it, without loading it."""
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(name)
    return str(importlib.import_module(module).__version__)
