"""Linears over weights that are read a strip of rows at a time, so memory never holds a model.

A strip is checked for NaN and infinity when it is read, and the next one is read while the
current one is multiplied. Nothing is cached: the page cache does that better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array, LazyTensor
from edgekit.errors import CheckpointError
from edgekit.evaluate.workers import Workers
from edgekit.models.config import Linear
from edgekit.units import MIB

TensorSource = Callable[[str], LazyTensor]
"""Opens a tensor by its checkpoint key; raises CheckpointError when there is none."""

STRIP_BYTES = 16 * MIB
"""Float32 bytes of one strip; two are alive at once. Larger strips multiply no faster, and beyond
32 MiB glibc maps fresh pages for every one."""

BLOCKS = 8
"""Parts a strip is multiplied in, whatever the number of threads."""

_ROW_GAP = 8
"""Rows read for nothing to save a read: a read costs more than a few rows."""


class WeightStrips:
    """Reads the weights of a model, bounded by ``strip_bytes``.

    Args:
        tensors: Opens a tensor by name.
        workers: Threads of :meth:`linear`; with more than one, the next strip is also read
            while one is used.
        strip_bytes: Float32 bytes of a strip, at least one row.
    """

    def __init__(
        self, tensors: TensorSource, workers: Workers, *, strip_bytes: int = STRIP_BYTES
    ) -> None:
        self._tensors = tensors
        self._workers = workers
        self._strip_bytes = strip_bytes

    def stored_bytes(self, names: Sequence[str]) -> int:
        """Return the bytes the named tensors take in the checkpoint."""
        return sum(self._tensors(name).stored_bytes for name in names)

    def vector(self, name: str, size: int) -> Float32Array:
        """Return a norm weight or a bias, float32 [size].

        Raises:
            CheckpointError: Wrong shape, NaN or infinity.
        """
        tensor = self._open(name, (size,))
        return _finite(tensor, 0, tensor.rows(0, size))

    def matrix(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[int, Float32Array]]:
        """Yield ``(first_row, float32 [rows, K])`` over a whole weight [N, K], in order.

        Raises:
            CheckpointError: Wrong shape, NaN or infinity.
        """
        tensor = self._open(name, shape)
        height = self.rows_per_strip(shape[1])
        starts = range(0, shape[0], height)

        def read(start: int) -> Float32Array:
            return _finite(tensor, start, tensor.rows(start, min(start + height, shape[0])))

        if len(starts) == 1 or self._workers.threads == 1:
            yield from ((start, read(start)) for start in starts)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="edgekit-strips") as pool:
            coming = pool.submit(read, 0)
            for start in starts:
                strip = coming.result()
                if start + height < shape[0]:
                    coming = pool.submit(read, start + height)
                yield start, strip

    def gather(self, name: str, shape: tuple[int, int], ids: npt.NDArray[np.int64]) -> Float32Array:
        """Return rows ``ids`` of a weight [N, K] as float32 [len(ids), K].

        Raises:
            CheckpointError: An id is outside the weight, or the weight is damaged.
        """
        tensor = self._open(name, shape)
        out = np.empty((ids.size, shape[1]), np.float32)
        if not ids.size:
            return out
        wanted, inverse = np.unique(ids, return_inverse=True)
        if wanted[0] < 0 or wanted[-1] >= shape[0]:
            bad = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise CheckpointError(
                f"token id {bad} is outside the {shape[0]} rows of {name}",
                "The tokenizer and config.json are not of one model",
            )
        order = np.argsort(inverse, kind="stable")
        ends = np.searchsorted(inverse[order], np.arange(1, wanted.size + 1))
        for first, last in _spans(wanted, self.rows_per_strip(shape[1])):
            start, stop = int(wanted[first]), int(wanted[last]) + 1
            rows = _finite(tensor, start, tensor.rows(start, stop))
            places = order[(ends[first - 1] if first else 0) : ends[last]]
            out[places] = rows[ids[places] - start]
        return out

    def linear(
        self, linear: Linear, x: Float32Array, out: Float32Array | None = None
    ) -> Float32Array:
        """Return ``x @ weight.T + bias``, float32 [T, out_features]; see :meth:`product`."""
        out = self.product(linear, x, out)
        if linear.bias:
            out += self.vector(f"{linear.name}.bias", linear.out_features)
        return out

    def product(
        self, linear: Linear, x: Float32Array, out: Float32Array | None = None
    ) -> Float32Array:
        """Return ``x @ weight.T``, float32 [T, out_features].

        Args:
            linear: Which weight.
            x: Float32 [T, in_features].
            out: Where to write; fresh memory by default.
        """
        if out is None:
            out = np.empty((x.shape[0], linear.out_features), np.float32)
        for start, strip in self.matrix(
            linear.weight_key, (linear.out_features, linear.in_features)
        ):
            self.multiply(x, strip, out[:, start : start + strip.shape[0]])
        return out

    def multiply(self, x: Float32Array, strip: Float32Array, out: Float32Array) -> None:
        """Write ``x @ strip.T`` to ``out``, the strip's rows split among the threads.

        The split does not depend on the number of threads, so neither do the rounding errors:
        golden sequences come out the same on any number of cores.
        """
        height = -(-strip.shape[0] // BLOCKS)
        self._workers.rows(
            lambda rows: _product(x, strip[rows], out[:, rows]), strip.shape[0], height
        )

    def rows_per_strip(self, columns: int) -> int:
        """Return how many rows of ``columns`` float32 values a strip holds."""
        return max(1, self._strip_bytes // (4 * columns))

    def _open(self, name: str, shape: tuple[int, ...]) -> LazyTensor:
        tensor = self._tensors(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}",
                "The weights and config.json are not of one model",
            )
        return tensor


def _product(x: Float32Array, strip: Float32Array, out: Float32Array) -> None:
    np.matmul(x, strip.T, out=out)


def _spans(wanted: npt.NDArray[np.int64], height: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first, last)`` indices of sorted ids that one read of <= height rows covers."""
    first = 0
    for i in range(1, wanted.size):
        if wanted[i] - wanted[i - 1] > _ROW_GAP or wanted[i] - wanted[first] >= height:
            yield first, i - 1
            first = i
    yield first, wanted.size - 1


def _finite(tensor: LazyTensor, start: int, rows: Float32Array) -> Float32Array:
    # The sum is several times cheaper than isfinite over every element, and cannot be finite
    # when an element is not. It may overflow where no element does: then look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(rows.sum())
    if suspicious:
        flat = np.isfinite(rows).reshape(rows.shape[0], -1).all(axis=1)
        if not flat.all():
            row = start + int(np.argmin(flat))
            raise CheckpointError(
                f"{tensor.name} holds NaN or infinity in row {row}",
                "The checkpoint is damaged: download it again",
            )
    return rows
