"""Canonical JSON and manifests: one encoding, strict reading, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.canonical import canonical_bytes, parse_document
from edgekit.contracts.manifest import FileEntry, GraphEntry, Manifest, TensorEntry, check_path
from edgekit.errors import BundleError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def manifest() -> Manifest:
    """A small manifest with every kind of entry."""
    return Manifest(
        name="tiny",
        model={"source": "tiny", "revision": None},
        checkpoint_files=(FileEntry("config.json", 3, digest("c")),),
        recipe={"name": "r"},
        target={"name": "orin"},
        requirements={"memory_bytes": 1},
        limits={"max_context": 64, "max_sequences": 1},
        tools={"edgekit": "0"},
        files=(FileEntry("g.onnx", 5, digest("g")),),
        graphs=(GraphEntry("standard.float32", "g.onnx", "standard", 24, "float32", "target"),),
        tensors=(
            TensorEntry("a.codes", "codes", "int4", (4, 6), 12, digest("a"), "w4-g32"),
            TensorEntry("n.weight", "dense", "float16", (8,), 16, digest("n")),
        ),
        f16_exponents={"residual": 0, "mlp": [], "value": []},
        golden={"sequences": 1},
        quality={"checked": False},
        size={"weights_bytes": 28},
    )


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_canonical_json_round_trips(value: dict[str, Any]) -> None:
    """Reading canonical bytes and writing them again gives the same value and the same bytes."""
    data = canonical_bytes(value)
    assert parse_document(data, "x") == value
    assert canonical_bytes(parse_document(data, "x")) == data


def test_canonical_json_is_as_specified() -> None:
    """Keys are sorted, nothing is spaced, only what must be is escaped."""
    value = {"b": [1, 2.0, 1e-06], "a": 'é\n"', "B": None}
    assert canonical_bytes(value) == '{"B":null,"a":"é\\n\\"","b":[1,2.0,1e-06]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1, {1: 2}, b"x", {"a": {3}}])
def test_what_other_readers_would_change_is_refused(value: Any) -> None:
    """NaN, infinity, large integers and what is not JSON cannot be written."""
    with pytest.raises(BundleError):
        canonical_bytes({"x": value})


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff", b'{"a":' + b"[" * 100]
)
def test_bad_documents_are_refused(data: bytes) -> None:
    """Bad JSON of every kind is an error that names the file."""
    with pytest.raises(BundleError, match=r"x\.json"):
        parse_document(data, "x.json")


def test_size_limit() -> None:
    """A document beyond the limit is not parsed."""
    with pytest.raises(BundleError, match="at most 4 are read"):
        parse_document(b'{"a":1}', "x", limit_bytes=4)


def test_manifest_round_trips() -> None:
    """A manifest read back is equal, with the same bytes and digest."""
    original = manifest()
    again = Manifest.from_bytes(original.to_bytes())
    assert again == original
    assert again.digest() == hashlib.sha256(original.to_bytes()).hexdigest()


def test_unknown_fields_survive() -> None:
    """A newer writer's extra field is kept and written back."""
    values = {**manifest().to_dict(), "signed_off_by": ["QA"]}
    again = Manifest.from_bytes(canonical_bytes(values))
    assert again.to_dict()["signed_off_by"] == ["QA"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "zip"}, "is not of format"),
        ({"schema_version": 2}, "schema_version 2, this edgekit reads 1"),
        ({"tensors": None}, "lacks or misuses a field"),
        (
            {"files": [{"path": "../x", "size_bytes": 1, "sha256": digest("x")}]},
            "plain relative path",
        ),
        ({"files": [{"path": "x", "size_bytes": 1, "sha256": "00"}]}, "64 hex digits"),
        (
            {"files": [{"path": "x", "size_bytes": 1, "sha256": digest("x")}] * 2},
            "lists file x twice",
        ),
    ],
)
def test_bad_manifests_are_refused(change: dict[str, Any], message: str) -> None:
    """A wrong field is named."""
    values = {**manifest().to_dict(), **change}
    with pytest.raises(BundleError, match=message):
        Manifest.from_bytes(canonical_bytes(values))


def test_edited_manifest_is_refused() -> None:
    """Bytes that are not the canonical form of what they say have been edited."""
    pretty = json.dumps(manifest().to_dict(), indent=1, sort_keys=True).encode()
    with pytest.raises(BundleError, match="not canonical"):
        Manifest.from_bytes(pretty)


def test_tensor_sizes_must_fit_their_shapes() -> None:
    """A blob's length is that of its shape and type, int4 counted by half bytes."""
    entry = manifest().tensors[0]
    with pytest.raises(BundleError, match="its shape"):
        dataclasses.replace(entry, size_bytes=11)
    with pytest.raises(BundleError, match="dtype 'int3'"):
        dataclasses.replace(entry, dtype="int3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a\\b", "a/./b", "a//b", "a\n", "x" * 300]
)
def test_paths_that_leave_or_differ_are_refused(path: str) -> None:
    """Only plain relative POSIX paths are accepted."""
    with pytest.raises(BundleError):
        check_path(path)


@pytest.mark.parametrize("path", ["a", "tokenizer/tokenizer.json", "blobs/ab/abcd"])
def test_plain_paths_are_accepted(path: str) -> None:
    """What the writer makes is accepted."""
    check_path(path)
