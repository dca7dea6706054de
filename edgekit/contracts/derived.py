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
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.fields import check_choice, check_rows
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
DTYPES = ("uint8", "float16", "float32")

MAX_ENTRIES = 100_000
_ROW = {
    **dict.fromkeys(("name", "kind", "dtype"), "text"),
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
        BundleError: It is not such a document, or of a newer kind.
    """
    rows: Any = parse_document(data, what).get("derived")
    check_rows(rows, _ROW, f"{what}: derived", MAX_ENTRIES)
    for row in rows:
        check_choice(row["kind"], KINDS, f"{what}: {row['name']}: kind")
        check_choice(row["dtype"], DTYPES, f"{what}: {row['name']}: dtype")
        if not row["sources"] or not all(isinstance(name, str) for name in row["sources"]):
            raise BundleError(f"{what}: {row['name']} has no list of sources")
    return tuple(
        DerivedTensor(
            row["name"], row["kind"], row["dtype"], tuple(row["shape"]), tuple(row["sources"])
        )
        for row in rows
    )
