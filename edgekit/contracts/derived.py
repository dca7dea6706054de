"""Weights that a graph reads and a bundle does not store: a session makes them at load.

The ``ort`` dialect multiplies by ``MatMulNBits``, which wants codes in another layout than the
blobs, several linears in one. A bundle that held those, too, would be twice as large; so beside
such a graph stands ``<graph>.weights.json``, canonical JSON, a list ``derived`` of

| field | meaning |
|---|---|
| ``name`` | the graph's initializer |
| ``kind`` | how it is made, see :data:`KINDS` |
| ``dtype``, ``shape`` | of what is made |
| ``sources`` | names of the bundle's tensors it is made from, in order |

A list may be made to mislead: :func:`check_derived` holds it to the manifest before anything is
allocated by its sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.fields import check_choice, check_rows, is_name
from edgekit.contracts.manifest import BITS, TensorEntry, blob_bytes
from edgekit.errors import BundleError

CODES = "matmul_nbits_codes"
"""Sources are codes [K, N1], [K, N2], ..., all of b bits; made is uint8 [N, blocks, block b / 8]:
the sources side by side along N, each column's codes in order of k, offset by 2**(b - 1) to be
unsigned, two 4-bit codes a byte, the first in the low nibble. A last block beyond K holds zeros."""
SCALES = "matmul_nbits_scales"
"""Sources are scales [G, N1], [G, N2], ...; made is [N, blocks], each scale repeated blocks / G
times."""
JOIN = "join"
"""Sources are vectors, made is one behind the other."""
ROWS = "repeat_last_row"
"""The source is [R, D]; made is the same with its last row repeated until there are more rows."""
KINDS = (CODES, SCALES, JOIN, ROWS)
RANKS = {CODES: 3, SCALES: 2, JOIN: 1, ROWS: 2}
DTYPES = {"uint8": 8, "float16": 16, "float32": 32}
"""Types of what is made, and their bits."""

ROW_MULTIPLE = 64
"""Rotary tables reach to the next multiple of this above the context: where the last cache tier
ends, an idle slot that is full still has a position. So a table grows by at most this."""
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""Codes in a block of ``MatMulNBits``: powers of two from 16 (ONNX Runtime's operators)."""
MAX_ENTRIES = 100_000
MAX_SOURCES = 16
MAX_DIM = 2**40
MAX_GROWTH = 2
"""What is made has at most so many times the blobs' bytes: scales and vectors widened to float32,
everything else as large as it is stored."""
SPARE_BYTES = 1 << 20
"""And so much more, for the padding of tiny models."""
_FLOATS = ("float16", "float32")
_ROW = {
    "name": "name",
    **dict.fromkeys(("kind", "dtype"), "text"),
    "shape": "counts",
    "sources": "list",
}


@dataclass(frozen=True, slots=True)
class DerivedTensor:
    """One such weight; the fields are those of the table above."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of what is made."""
        return math.prod(self.shape) * DTYPES[self.dtype] // 8


def derived_path(graph_path: str) -> str:
    """Return where a graph's list stands, relative to the bundle."""
    return str(PurePosixPath(graph_path).with_suffix(".weights.json"))


def derived_bytes(tensors: Iterable[DerivedTensor]) -> bytes:
    """Return the canonical bytes that are stored."""
    rows = [asdict(tensor) for tensor in sorted(tensors, key=lambda tensor: tensor.name)]
    return canonical_bytes({"derived": rows})


def parse_derived(data: bytes, what: str) -> tuple[DerivedTensor, ...]:
    """Read what :func:`derived_bytes` wrote.

    Args:
        data: The document.
        what: What to call it in errors.

    Raises:
        BundleError: It is not such a document, of a newer kind, lists a name twice, or a row has
            more dimensions or sources than its kind can have.
    """
    rows: Any = parse_document(data, what).get("derived")
    check_rows(rows, _ROW, f"{what}: derived", MAX_ENTRIES)
    for row in rows:
        where = f"{what}: {row['name']}"
        check_choice(row["kind"], KINDS, f"{where}: kind")
        check_choice(row["dtype"], tuple(DTYPES), f"{where}: dtype")
        if not row["sources"] or not all(map(is_name, row["sources"])):
            raise BundleError(f"{where} has no list of sources")
        if len(row["sources"]) > MAX_SOURCES:
            raise BundleError(f"{where} has {len(row['sources'])} sources, at most {MAX_SOURCES}")
        if len(row["shape"]) != RANKS[row["kind"]]:
            raise BundleError(f"{where} has {len(row['shape'])} dimensions, not its kind's")
        if not all(0 < dim <= MAX_DIM for dim in row["shape"]):
            raise BundleError(f"{where} has a dimension outside 1 to {MAX_DIM}")
    _check_once((row["name"] for row in rows), what)
    return tuple(
        DerivedTensor(
            row["name"], row["kind"], row["dtype"], tuple(row["shape"]), tuple(row["sources"])
        )
        for row in rows
    )


def check_derived(
    listed: Sequence[DerivedTensor], tensors: Sequence[TensorEntry], what: str
) -> None:
    """Hold a list to the tensors of its bundle, by their shapes alone: nothing is read or made.

    Args:
        listed: From :func:`parse_derived`.
        tensors: What the manifest stores.
        what: What to call the list in errors.

    Raises:
        BundleError: A source is not there, does not give the shape or type of what is to be made,
            or is used twice for one kind; or all of it is larger than the blobs can give.
    """
    entries = {tensor.name: tensor for tensor in tensors}
    for tensor in listed:
        wrong = _misfit(tensor, entries)
        if wrong:
            raise BundleError(f"{what}: {tensor.name} {wrong}")
    for kind in KINDS:
        _check_once((s for tensor in listed if tensor.kind == kind for s in tensor.sources), what)
    made_bytes, limit = sum(x.size_bytes for x in listed), MAX_GROWTH * blob_bytes(tensors)
    if made_bytes > limit + SPARE_BYTES:
        raise BundleError(f"{what} asks for {made_bytes} bytes of weights, the blobs give {limit}")


def _check_once(names: Iterable[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BundleError(f"{what} names {twice[0]} twice")


def _misfit(tensor: DerivedTensor, entries: Mapping[str, TensorEntry]) -> str:
    """Return what is wrong with a weight; empty where its sources give it."""
    missing = [name for name in tensor.sources if name not in entries]
    if missing:
        return f"is made from {missing[0]}, which is not there"
    sources = [entries[name] for name in tensor.sources]
    shape, rank = tensor.shape, 1 if tensor.kind == JOIN else 2
    if any(len(source.shape) != rank for source in sources):
        return f"is made from a tensor that has not {rank} dimensions"
    if tensor.kind == CODES:
        return _misfit_codes(tensor, sources)
    if tensor.dtype not in _FLOATS or any(source.dtype not in _FLOATS for source in sources):
        return "is not float made from float"
    first = sources[0].shape
    if tensor.kind == JOIN:
        fits = shape == (sum(source.shape[0] for source in sources),)
    elif tensor.kind == ROWS:
        longer = 0 <= shape[0] - first[0] <= ROW_MULTIPLE
        fits = longer and shape[1] == first[1] and len(sources) == 1
    else:
        same = all(source.shape[0] == first[0] for source in sources)
        width = sum(source.shape[1] for source in sources)
        fits = same and shape[0] == width and shape[1] % first[0] == 0
    return "" if fits else _no_shape(tensor, sources)


def _misfit_codes(tensor: DerivedTensor, sources: Sequence[TensorEntry]) -> str:
    kinds = {source.dtype for source in sources}
    bits = BITS[sources[0].dtype]
    if len(kinds) != 1 or bits > 8 or tensor.dtype != "uint8":
        return f"is {tensor.dtype} made from {' and '.join(sorted(kinds))}, no uint8 from codes"
    channels, (width, blocks, block_bytes) = sources[0].shape[0], tensor.shape
    block = block_bytes * 8 // bits
    fits = (
        all(source.shape[0] == channels for source in sources)
        and channels * bits % 8 == 0
        and width == sum(source.shape[1] for source in sources)
        and block in BLOCK_SIZES
        and blocks == -(-channels // block)
    )
    return "" if fits else _no_shape(tensor, sources)


def _no_shape(tensor: DerivedTensor, sources: Sequence[TensorEntry]) -> str:
    given = " and ".join(str(list(source.shape)) for source in sources)
    return f"is {list(tensor.shape)}, which {given} do not give"
