"""The machines a bundle is built for, and what they impose on it.

Facts: AGX Orin 64GB and 32GB have 204.8 GB/s LPDDR5 (NVIDIA Jetson AGX Orin data sheet
DS-10662); JetPack 7.2 is L4T R39.2 with TensorRT 10.16, JetPack 6.2 is L4T R36.4 with
TensorRT 10.3. A fifth of the memory stays free against out-of-memory kills.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Dialect = Literal["standard", "trt103", "ort"]
MEMORY_RESERVE_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """One machine and software stack.

    Attributes:
        memory_bytes: Memory the model shares with everything else on the machine.
        bandwidth_bytes_per_s: Peak memory bandwidth; 0 where it is not a property of the target.
        activation_dtype: Type of activations and caches in the target's graph.
        dialect: Lowering of the target's graph (design: dialects).
        l4t, tensorrt, onnxruntime: Version ranges (PEP 440) the bundle requires; empty for none.
    """

    name: str
    title: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    activation_dtype: Literal["float16", "float32"]
    dialect: Dialect
    l4t: str = ""
    tensorrt: str = ""
    onnxruntime: str = ""

    @property
    def usable_bytes(self) -> int:
        """Memory a model may take: all but the reserve."""
        return int(self.memory_bytes * (1 - MEMORY_RESERVE_FRACTION))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form stored in a manifest."""
        return asdict(self)


_ORIN_BANDWIDTH = 204.8e9

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "orin",
            "Jetson AGX Orin 64GB, JetPack 7.2",
            64_000_000_000,
            _ORIN_BANDWIDTH,
            "float16",
            "standard",
            l4t=">=39.2,<40",
            tensorrt=">=10.15,<12",
            onnxruntime=">=1.24",
        ),
        Target(
            "orin-32gb",
            "Jetson AGX Orin 32GB, JetPack 7.2",
            32_000_000_000,
            _ORIN_BANDWIDTH,
            "float16",
            "standard",
            l4t=">=39.2,<40",
            tensorrt=">=10.15,<12",
            onnxruntime=">=1.24",
        ),
        Target(
            "orin-jp62",
            "Jetson AGX Orin 64GB, JetPack 6.2",
            64_000_000_000,
            _ORIN_BANDWIDTH,
            "float16",
            "trt103",
            l4t=">=36.4,<37",
            tensorrt=">=10.3,<10.4",
            onnxruntime=">=1.20",
        ),
        Target(
            "cpu",
            "Any x86-64 or aarch64 host, ONNX Runtime CPU",
            24_000_000_000,
            0.0,
            "float32",
            "standard",
            onnxruntime=">=1.24",
        ),
    )
}
