"""A weight that its checkpoint already stores as integer codes and scales.

GPTQ, AWQ and compressed-tensors differ in how codes are packed, not in what they mean::

    weight[n, k] = scales[n, g(k)] * (codes[n, k] - zeros[n, g(k)])

Each format's file gives a :class:`CodeLayout`; :class:`PrequantizedTensor` decodes it to float32
rows like any other weight and, where the scheme is the one edgekit stores (symmetric, contiguous
groups), hands out the codes themselves so that they can be kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekit.checkpoint.lazy import Float32Array, LazyTensor
from edgekit.checkpoint.safetensors import StoredTensor
from edgekit.errors import CheckpointError

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]

CODE_BITS = (4, 8)
"""Widths that are read; no published DeepSeek checkpoint uses 2 or 3."""


class CodeLayout(Protocol):
    """Where a weight's codes, zero points and scales are; [N, K] in G groups along K.

    Codes and zero points are centred: 4 bits in [-8, 7], 8 bits in [-128, 127].
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape [N, K]."""

    @property
    def groups(self) -> int:
        """G."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its parts."""

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K]."""

    def zeros(self, start: int, stop: int) -> Int8Array | None:
        """Return the centred zero points of rows, int8 [rows, G]; None when all are 0."""

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G]."""


@dataclass(frozen=True, slots=True)
class PrequantizedTensor:
    """A quantized weight of a checkpoint; a :class:`LazyTensor`.

    Attributes:
        name: Checkpoint key of the weight it stands for, ``<module>.weight``.
        layout: Its parts.
        bits: 4 or 8.
        group_of: Group of each input channel, int32 [K]; None when groups are contiguous and of
            equal size.
    """

    name: str
    layout: CodeLayout
    bits: int
    group_of: Int32Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape [N, K]."""
        return self.layout.shape

    @property
    def stored_bytes(self) -> int:
        """Bytes in the checkpoint, scales and zero points included."""
        return self.layout.stored_bytes

    @property
    def group_size(self) -> int:
        """Input channels that share a scale; 0 is one scale per output channel."""
        groups = self.layout.groups
        return 0 if groups == 1 else self.layout.shape[1] // groups

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is mid-range; reads the zero points."""
        return self.layout.zeros(0, self.layout.shape[0]) is None

    def codes(self, start: int, stop: int) -> Int8Array:
        """Return the centred codes of rows, int8 [rows, K].

        They are the weight only together with :meth:`scales`, and only where :func:`kept_codes`
        returns the tensor. Values are in [-8, 7], or in [-128, 127] with 8 bits.
        """
        return self.layout.codes(start, stop)

    def scales(self, start: int, stop: int) -> Float32Array:
        """Return the scales of rows, float32 [rows, G], unchecked (they may hold NaN)."""
        return self.layout.scales(start, stop)

    def rows(self, start: int, stop: int) -> Float32Array:
        """Return rows as fresh float32, as the format's own runtime dequantizes them."""
        values = self.layout.codes(start, stop).astype(np.float32)
        zeros, scales = self.layout.zeros(start, stop), self.layout.scales(start, stop)
        if self.group_of is not None:
            if zeros is not None:
                values -= zeros[:, self.group_of]
            values *= scales[:, self.group_of]
            return values
        grouped = values.reshape(stop - start, self.layout.groups, -1)
        if zeros is not None:
            grouped -= zeros[:, :, None]
        grouped *= scales[:, :, None]
        return values


def kept_codes(tensor: LazyTensor) -> PrequantizedTensor | None:
    """Return a weight whose codes can be stored as they are, else None.

    They can when zero points are mid-range and groups are contiguous: then edgekit's own formula,
    ``codes * scales``, is the checkpoint's.
    """
    if isinstance(tensor, PrequantizedTensor) and tensor.group_of is None and tensor.symmetric:
        return tensor
    return None


def unpack_words(words: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    """Split the last axis' 32-bit words into codes, the lowest bits first.

    Args:
        words: int32 [..., W].
        bits: 4 or 8.

    Returns:
        uint8 [..., W * 32 / bits].
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets
    nibbles = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=nibbles[..., 0])
    np.right_shift(octets, 4, out=nibbles[..., 1])
    return nibbles.reshape(*octets.shape[:-1], -1)


def unpack_channels(
    words: npt.NDArray[Any], bits: int, start: int, stop: int, place: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """Unpack channels ``start:stop`` of words that are packed along the last axis.

    Args:
        words: int32 [..., W].
        bits: 4 or 8.
        start: First channel.
        stop: One past the last.
        place: Where in a word each of its channels stands; None: in order, the lowest bits first.

    Returns:
        uint8 [..., stop - start].
    """
    per_word = 32 // bits
    first, last = start // per_word, -(-stop // per_word)
    codes = unpack_words(words[..., first:last], bits)
    if place is not None:
        by_word = codes.reshape(*codes.shape[:-1], -1, per_word)
        codes = by_word[..., place].reshape(codes.shape)
    return codes[..., start - first * per_word : stop - first * per_word]


def centre(codes: npt.NDArray[np.uint8], bits: int) -> Int8Array:
    """Move unsigned codes to mid-range: subtract ``2**(bits - 1)``; returns int8."""
    if bits == 8:
        return np.bitwise_xor(codes, 128).view(np.int8)
    return codes.view(np.int8) - np.int8(8)


def none_if_zero(zeros: Int8Array) -> Int8Array | None:
    """Return None for zero points that change nothing."""
    return zeros if zeros.any() else None


def contiguous_or_order(order: Int32Array | None, groups: int, columns: int) -> Int32Array | None:
    """Return None when channel k is in group ``k // (columns / groups)``, else the order given."""
    if order is None:
        return None
    even = columns % groups == 0
    if even and np.array_equal(order, np.arange(columns) // (columns // groups)):
        return None
    return order


def part(stored: Mapping[str, StoredTensor], name: str) -> StoredTensor:
    """Return one part of a quantized weight.

    Raises:
        CheckpointError: It is missing.
    """
    try:
        return stored[name]
    except KeyError:
        raise CheckpointError(
            f"the quantized checkpoint lacks {name}",
            "The checkpoint is incomplete: download it again",
        ) from None


def check_part(
    tensor: StoredTensor, shape: tuple[int, ...], dtypes: frozenset[str] = frozenset({"I32"})
) -> None:
    """Refuse a part whose shape or type does not fit the others.

    Raises:
        CheckpointError: Names the part, what it is and what it should be.
    """
    if tensor.shape != shape or tensor.dtype not in dtypes:
        raise CheckpointError(
            f"{tensor.path.name}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}, its weight "
            f"needs {' or '.join(sorted(dtypes))} {list(shape)}",
            "The checkpoint is damaged or of another packing: use the unquantized one",
        )


def read_order(tensor: StoredTensor | None, groups: int, columns: int) -> Int32Array | None:
    """Read a ``g_idx``: the group of each input channel.

    Raises:
        CheckpointError: It has another shape, or names a group that does not exist.
    """
    if tensor is None:
        return None
    check_part(tensor, (columns,))
    order = np.array(tensor.mapped())
    if order.min() < 0 or order.max() >= groups:
        raise CheckpointError(f"{tensor.name} names groups outside 0 to {groups - 1}")
    return contiguous_or_order(order, groups, columns)
