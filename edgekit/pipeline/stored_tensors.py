"""A bundle's blobs read back as a checkpoint's weights.

What the reference runs over these is exactly what was stored (packing, layout, float16 scales), so
a bundle too large for an engine beside the build is still judged by its own bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.bundle.reader import map_blob
from edgekit.checkpoint.lazy import Float32Array, LazyTensor
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError
from edgekit.graph.exponents import Exponents
from edgekit.graph.weights import bias_name, codes_name, dense_name, scales_name
from edgekit.models.config import ModelConfig, all_linears

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """Opens weights of a bundle (or of one being written) by their checkpoint key.

    Attributes:
        root: Folder above ``blobs/``.
        entries: The manifest's tensors by name.
        config: The architecture, its embeddings untied: the stored head is a weight of its own.
        exponents: Powers of two to take out again.
    """

    root: Path
    entries: Mapping[str, TensorEntry]
    config: ModelConfig
    exponents: Exponents

    def open(self, key: str) -> LazyTensor:
        """Open the weight that the checkpoint calls ``key``."""
        module, kind = key.rsplit(".", 1)
        if kind == "bias":
            return self._dense(bias_name(module), self.exponents.of_tensor(key))
        if module == "model.embed_tokens":
            exponent = self.exponents.of_weight(module)
            if codes_name(module) in self.entries:
                return self._quantized(module, exponent, transposed=False)
            return self._dense(key, exponent)
        if module in {linear.name for linear in all_linears(self.config)}:
            return self._linear(module)
        return self._dense(key, self.exponents.of_tensor(key))

    def _linear(self, name: str) -> LazyTensor:
        exponent = self.exponents.of_weight(name)
        if codes_name(name) in self.entries:
            return self._quantized(name, exponent, transposed=True)
        return _StoredDense(self.root, self._entry(dense_name(name)), exponent, transposed=True)

    def _dense(self, name: str, exponent: int) -> LazyTensor:
        return _StoredDense(self.root, self._entry(name), exponent, transposed=False)

    def _quantized(self, name: str, exponent: int, *, transposed: bool) -> LazyTensor:
        codes, scales = self._entry(codes_name(name)), self._entry(scales_name(name))
        return _StoredQuantized(self.root, codes, scales, exponent, transposed=transposed)

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.entries[name]
        except KeyError:
            raise BundleError(f"the bundle has no tensor {name}") from None


@dataclass(frozen=True, slots=True)
class _StoredDense:
    root: Path
    entry: TensorEntry
    exponent: int
    transposed: bool

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape[::-1] if self.transposed else self.entry.shape

    @property
    def stored_bytes(self) -> int:
        return self.entry.size_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        data = map_blob(self.root, self.entry)
        part = data[:, start:stop].T if self.transposed else data[start:stop]
        values = part.astype(np.float32, order="C")
        values *= np.float32(2.0**-self.exponent)
        return values


@dataclass(frozen=True, slots=True)
class _StoredQuantized:
    root: Path
    codes: TensorEntry
    scales: TensorEntry
    exponent: int
    transposed: bool

    @property
    def name(self) -> str:
        return self.codes.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape[::-1] if self.transposed else self.codes.shape

    @property
    def stored_bytes(self) -> int:
        return self.codes.size_bytes + self.scales.size_bytes

    def rows(self, start: int, stop: int) -> Float32Array:
        codes, scales = map_blob(self.root, self.codes), map_blob(self.root, self.scales)
        if not self.transposed:
            return _scaled(codes[start:stop], scales[start:stop], self.exponent)
        if self.codes.dtype == "int8":
            return _scaled(codes[:, start:stop].T, scales[:, start:stop].T, self.exponent)
        return self._int4_rows(codes, scales, start, stop)

    def _int4_rows(self, codes: Array, scales: Array, start: int, stop: int) -> Float32Array:
        from edgekit.quant import kernels  # noqa: PLC0415 - Numba is slow to import

        first, last = start // 2, -(-stop // 2)  # two codes a byte
        factors = np.ldexp(scales[:, 2 * first : 2 * last].astype(np.float32), -self.exponent)
        out = np.empty((len(codes), 2 * (last - first)), np.float32)
        group = len(codes) // len(scales)
        kernels.dequantize_int4(np.asarray(codes[:, first:last]), factors, group, out)
        # Left transposed, as stored: the products that use it read either order alike.
        return out[:, start - 2 * first : stop - 2 * first].T


def _scaled(codes: Array, scales: Array, exponent: int) -> Float32Array:
    """Return codes [rows, K] times their group's scale [rows, G] and 2**-exponent."""
    values = codes.astype(np.float32, order="C")
    by_group = values.reshape(len(values), scales.shape[1], -1)
    by_group *= np.ldexp(scales.astype(np.float32), -exponent)[:, :, None]
    return values
