"""Lists of weights made at load that mislead: refused by their sizes, before one is made."""

from __future__ import annotations

import copy
import hashlib
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts import derived
from edgekit.contracts.derived import check_derived, parse_derived
from edgekit.contracts.manifest import BITS, TensorEntry
from edgekit.errors import FETCH_AGAIN, BundleError


def entry(name: str, dtype: Any, *shape: int) -> TensorEntry:
    role: Any = name.rsplit(".", 1)[1] if dtype.startswith("int") else "dense"
    size = 1
    for dim in shape:
        size *= dim
    digest = hashlib.sha256(name.encode()).hexdigest()
    return TensorEntry(name, role, dtype, shape, size * BITS[dtype] // 8, digest)


TENSORS = (
    entry("q.codes", "int4", 64, 32),
    entry("k.codes", "int4", 64, 16),
    entry("o.codes", "int8", 600, 8),
    entry("h.codes", "int4", 64, 8),
    entry("q.scales", "float16", 2, 32),
    entry("k.scales", "float16", 2, 16),
    entry("q.bias", "float16", 32),
    entry("k.bias", "float16", 16),
    entry("rope.cos", "float32", 100, 8),
)
ROWS: dict[str, dict[str, Any]] = {
    "codes": {"kind": derived.CODES, "dtype": "uint8", "shape": [48, 2, 16],
              "sources": ["q.codes", "k.codes"]},
    "wide": {"kind": derived.CODES, "dtype": "uint8", "shape": [8, 38, 16], "sources": ["o.codes"]},
    "scales": {"kind": derived.SCALES, "dtype": "float32", "shape": [48, 4],
               "sources": ["q.scales", "k.scales"]},
    "bias": {"kind": derived.JOIN, "dtype": "float32", "shape": [48],
             "sources": ["q.bias", "k.bias"]},
    "table": {"kind": derived.ROWS, "dtype": "float16", "shape": [128, 8],
              "sources": ["rope.cos"]},
}  # fmt: skip


def read(rows: list[dict[str, Any]]) -> None:
    check_derived(parse_derived(json.dumps({"derived": rows}).encode(), "list"), TENSORS, "list")


def rows_of(changes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": name, **row, **changes.get(name, {})} for name, row in ROWS.items()]


def test_lists_that_go_with_the_tensors_pass() -> None:
    """What a build writes is read: joined, padded to a block, widened and lengthened."""
    read(rows_of({}))
    read(rows_of({"table": {"shape": [164, 8]}, "scales": {"dtype": "float16"}}))


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("codes", {"shape": [2**40, 2, 16]}, "do not give"),
    ("codes", {"shape": [2**53, 2, 16]}, "a dimension outside"),
    ("codes", {"shape": [48, 1, 2**40]}, "do not give"),
    ("codes", {"shape": [48, 1, 256]}, "do not give"),
    ("codes", {"shape": [48, 2**40, 16]}, "do not give"),
    ("codes", {"shape": [48, 2, 0]}, "a dimension outside"),
    ("codes", {"shape": [48, 32]}, "2 dimensions, not its kind's"),
    ("codes", {"shape": []}, "0 dimensions, not its kind's"),
    ("codes", {"shape": [1] * 1000}, "1000 dimensions, not its kind's"),
    ("codes", {"dtype": "float32"}, "no uint8 from codes"),
    ("codes", {"sources": ["q.codes", "q.bias"]}, "has not 2 dimensions"),
    ("codes", {"sources": ["q.codes", "k.scales"]}, "no uint8 from codes"),
    ("codes", {"sources": ["q.codes", "o.codes"]}, "no uint8 from codes"),
    ("codes", {"sources": ["q.codes", "k.codes", "h.codes"]}, "do not give"),
    ("codes", {"sources": ["q.codes"] * 17}, "17 sources, at most 16"),
    ("codes", {"sources": ["q.codes", "nowhere"]}, "nowhere, which is not there"),
    ("codes", {"sources": ["q.codes", ["k.codes"]]}, "no list of sources"),
    ("codes", {"sources": ["q.codes", "k\ncodes"]}, "no list of sources"),
    ("codes", {"sources": []}, "no list of sources"),
    ("codes", {"kind": derived.JOIN, "shape": [48]}, "has not 1 dimensions"),
    ("codes", {"kind": derived.SCALES, "shape": [48, 64]}, "is not float"),
    ("codes", {"name": "wide"}, "names wide twice"),
    ("codes", {"name": "a\nb"}, "must be a short printable string"),
    ("codes", {"name": "x" * 5000}, "must be a short printable string"),
    ("codes", {"kind": "shuffle"}, "kind is 'shuffle'"),
    ("codes", {"kind": "x" * 100_000}, "kind is 'xxx"),
    ("wide", {"sources": ["h.codes"], "shape": [8, 2, 16]}, ""),  # fits, so only this one may
    ("wide", {"shape": [8, 37, 16]}, "do not give"),
    ("wide", {"shape": [8, 39, 16]}, "do not give"),
    ("wide", {"sources": ["q.codes"], "shape": [32, 2, 16]}, "names q.codes twice"),
    ("scales", {"shape": [48, 3]}, "do not give"),
    ("scales", {"shape": [48, 0]}, "a dimension outside"),
    ("scales", {"shape": [47, 4]}, "do not give"),
    ("scales", {"shape": [48, 2**30]}, "bytes of weights, the blobs give"),
    ("scales", {"dtype": "uint8"}, "is not float"),
    ("scales", {"sources": ["q.scales", "rope.cos"]}, "do not give"),
    ("bias", {"shape": [2**40]}, "do not give"),
    ("bias", {"shape": [48, 1]}, "2 dimensions, not its kind's"),
    ("bias", {"sources": ["q.bias", "q.bias", "k.bias"], "shape": [80]}, "names q.bias twice"),
    ("bias", {"sources": ["rope.cos"]}, "has not 1 dimensions"),
    ("table", {"shape": [2**40, 8]}, "do not give"),
    ("table", {"shape": [165, 8]}, "do not give"),
    ("table", {"shape": [99, 8]}, "do not give"),
    ("table", {"shape": [128, 9]}, "do not give"),
    ("table", {"sources": ["rope.cos", "q.scales"]}, "do not give"),
    ("table", {"sources": ["q.bias"]}, "has not 2 dimensions"),
]


@pytest.mark.parametrize(("name", "change", "message"), HOSTILE)
def test_lists_that_mislead_are_refused(name: str, change: dict[str, Any], message: str) -> None:
    """One line with a remedy names the weight or the tensor, and nothing is allocated."""
    if not message:
        read(rows_of({name: change}))
        return
    with pytest.raises(BundleError) as caught:
        read(rows_of({name: change}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert caught.value.remedy == FETCH_AGAIN


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, -1, 0, 1, 2**31, 2**53, 2**62, 0.5, True, "", "x" * 5000, [], {}, [[]], [None],
     [2**53], [1] * 5000, {"a": []}, "join", "q.codes", "uint8", "repeat_last_row"]
)  # fmt: skip


@given(st.sampled_from(sorted(ROWS)), st.sampled_from(("name", *ROWS["codes"])), VALUES)
def test_any_value_is_read_or_refused(name: str, key: str, value: Any) -> None:
    """Whatever stands in a field, the answer is a BundleError or a list that the blobs give."""
    with suppress(BundleError):
        read(rows_of({name: {key: copy.deepcopy(value)}}))


@given(st.sampled_from(sorted(ROWS)), st.lists(st.integers(0, 300), max_size=4))
def test_any_shape_is_bounded_by_the_blobs(name: str, shape: list[int]) -> None:
    """No shape that passes asks for more than the blobs can give."""
    with suppress(BundleError):
        read(rows_of({name: {"shape": shape}}))
        size = 4
        for dim in shape:
            size *= dim
        assert size <= derived.SPARE_BYTES
