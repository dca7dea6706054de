"""Canonical JSON and manifests: one encoding, strict reading, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from factories import make_config
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contracts.canonical import canonical_bytes, parse_document, read_limited
from edgekit.contracts.engine_plan import plan_engine
from edgekit.contracts.manifest import (
    MAX_ENTRIES,
    FileEntry,
    GraphEntry,
    Manifest,
    TensorEntry,
    check_path,
)
from edgekit.errors import BundleError
from edgekit.models.exported import stored_config
from edgekit.models.families import model_config_from_hf

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


GRAPH = {
    "name": "g",
    "path": "g.onnx",
    "dialect": "standard",
    "opset": 24,
    "activation_dtype": "float32",
    "purpose": "target",
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


PLAN = plan_engine(
    "standard.float32", ">=10.15,<12", max_context=64, max_sequences=1, chunk_tokens=512
).to_dict()
PASSED = {
    **dict.fromkeys(("builder", "version", "sm", "graph", "attention"), "x"),
    **dict.fromkeys(("layers", "layers_compiled"), 2),
    "status": "passed",
    "target_version": True,
}


def manifest() -> Manifest:
    """A small manifest with every kind of entry."""
    return Manifest(
        name="tiny",
        model={"source": "tiny", "revision": None, "model_type": "qwen2", "parameters": 32,
               "config": {}},
        checkpoint_files=(FileEntry("config.json", 3, digest("c")),),
        recipe={"name": "r", "sha256": digest("r"), "resolved": {}},
        target={"name": "orin", "title": "Orin"},
        requirements={"l4t": "", "tensorrt": "", "onnxruntime": "", "memory_bytes": 1,
                      "disk_bytes": 1},
        limits={"max_context": 64, "max_sequences": 1},
        tools={"edgekit": "0"},
        files=(
            FileEntry("g.onnx", 5, digest("graph")),
            FileEntry("golden.json", 2, digest("{}")),
        ),
        graphs=(GraphEntry("standard.float32", "g.onnx", "standard", 24, "float32", "target"),),
        tensors=(
            TensorEntry("a.codes", "codes", "int4", (4, 6), 12, digest("a"), "w4-g32"),
            TensorEntry("n.weight", "dense", "float16", (8,), 16, digest("n")),
        ),
        f16_exponents={"residual": 0, "mlp": [], "value": []},
        golden={"path": "golden.json", "sequences": 1, "tokens": 2, "scored_by": "checkpoint"},
        quality={"checked": False, "tensors": [
            {"name": "a", "scheme": "w4-g32", "relative_rmse": 0.1, "sqnr_db": 20.0}]},
        size={"weights_bytes": 28, "linear_bytes": 12, "bits_per_linear_weight": 4.0},
    )  # fmt: skip


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
    with pytest.raises(BundleError, match=r"x\.json") as caught:
        parse_document(data, "x.json")
    assert str(caught.value).count("Fetch or build the bundle again") == 1


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
        ({"schema_version": True}, "schema_version True"),
        ({"tensors": None}, "tensors is not a list"),
        ({"tensors": [["x"]]}, r"tensors\[0\] is not a JSON object"),
        ({"limits": {}}, "limits lacks 'max_context'"),
        (
            {"limits": {"max_context": "many", "max_sequences": 1}},
            "'max_context' must be an integer from 1, not 'many'",
        ),
        ({"limits": {"max_context": True, "max_sequences": 1}}, "must be an integer from 1"),
        ({"model": {}}, "model lacks 'source'"),
        ({"graphs": [GRAPH | {"path": "../outside.onnx"}]}, "plain relative path"),
        ({"graphs": [GRAPH | {"path": "other.onnx"}]}, r"names other\.onnx but does not list it"),
        ({"graphs": [GRAPH | {"purpose": "spare"}]}, "purpose is 'spare', not one of target, host"),
        ({"graphs": [GRAPH | {"activation_dtype": "int8"}]}, "activation_dtype is 'int8'"),
        ({"graphs": [GRAPH, GRAPH]}, "lists graph g twice"),
        (
            {"files": [{"path": "g.onnx", "size_bytes": 1, "sha256": digest("g")}]},
            r"names golden\.json but does not list it",
        ),
        (
            {"files": [{"path": "../x", "size_bytes": 1, "sha256": digest("x")}]},
            "plain relative path",
        ),
        ({"files": [{"path": "x", "size_bytes": 1, "sha256": "00"}]}, "64 hex digits"),
        (
            {"files": [{"path": "x", "size_bytes": 1, "sha256": digest("x")}] * 2},
            "lists file x twice",
        ),
        ({"engine_plans": [PLAN, PLAN]}, "two engine plans of one graph"),
        ({"engine_plans": [PLAN | {"graph": "other"}]}, "other, which is none of its graphs"),
        (
            {"engine_plans": [PLAN | {"cache_capacity": 65}]},
            "of 65, the bundle a max_context of 64",
        ),
        ({"engine_plans": [PLAN | {"profiles": [PLAN["profiles"][0]] * 2}]}, "of the same name"),
        (
            {"engine_plans": [PLAN | {"profiles": [PLAN["profiles"][0] | {"batch": 2}]}]},
            "batch of 2, the bundle a max_sequences of 1",
        ),
        (
            {"golden": {"path": "x" * 2000, "sequences": 1, "tokens": 2, "scored_by": "x"}},
            "'path' must be a short printable string",
        ),
        ({"compile_check": None}, "compile_check is not a JSON object"),
        ({"compile_check": {"status": "failed"}}, "status is 'failed', not one of not run, passed"),
        ({"compile_check": {"status": "not run"}}, "compile_check lacks 'reason'"),
        ({"compile_check": PASSED | {"layers": "all"}}, "'layers' must be an integer from 0"),
        ({"limits": {"max_context": 2**53, "max_sequences": 1}}, "max_context is 9007199254740992"),
        ({"limits": {"max_context": 64, "max_sequences": 2**30}}, "max_sequences is 1073741824"),
        ({"graphs": [GRAPH | {"name": "a\nb"}]}, "'name' must be a short printable string"),
        ({"graphs": [GRAPH | {"purpose": "x" * 9999}]}, "purpose is 'x{39}\\.\\.\\., not one"),
    ],
)
def test_bad_manifests_are_refused(change: dict[str, Any], message: str) -> None:
    """A wrong field is named."""
    values = {**manifest().to_dict(), **change}
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_bytes(canonical_bytes(values))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_plans_and_findings_that_go_with_a_manifest_are_read() -> None:
    """An engine's plan, and what a compile check found, or why there was none."""
    for check in (PASSED, {"status": "not run", "reason": "no TensorRT"}):
        values = {**manifest().to_dict(), "engine_plans": [PLAN], "compile_check": check}
        read = Manifest.from_bytes(canonical_bytes(values))
        assert (read.engine_plans, read.compile_check) == ((PLAN,), check)


def test_a_name_listed_twice_among_many_is_found_at_once() -> None:
    """A manifest of as many entries as are read is refused in seconds."""
    names = [f"f{index}" for index in range(MAX_ENTRIES - 1)]
    files = [{"path": n, "size_bytes": 1, "sha256": digest("x")} for n in (*names, names[-1])]
    with pytest.raises(BundleError, match=f"lists file {names[-1]} twice"):
        Manifest.from_dict({**manifest().to_dict(), "files": files})


def test_large_documents_are_not_read(tmp_path: Path) -> None:
    """A file beyond the limit is refused, whatever its size is said to be."""
    path = tmp_path / "x.json"
    path.write_bytes(b"{}   ")
    assert read_limited(path, 5) == b"{}   "
    with pytest.raises(BundleError, match="larger than the 4 bytes that are read"):
        read_limited(path, 4)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], (dict, list)):
            found += places(value[key])
    return found


CONFIG: dict[str, Any] = model_config_from_hf(make_config()).to_dict()


@given(st.data())
def test_any_mutation_is_read_or_refused(data: st.DataObject) -> None:
    """A manifest changed anywhere is read, or a BundleError: never another exception."""
    values: dict[str, Any] = json.loads(manifest().to_bytes())
    values["model"]["config"] = json.loads(json.dumps(CONFIG))
    container, key = data.draw(st.sampled_from(places(values)))
    if data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(JSON)
    with suppress(BundleError):
        read = Manifest.from_bytes(canonical_bytes(values))
        stored_config(read.model["config"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**12}, "layers, at most"),
        ({"hidden_size": "wide"}, "'hidden_size' must be an integer from 1"),
        ({"rope": {"rope_type": "default"}}, "lacks 'rope_theta'"),
        ({"rope": CONFIG["rope"] | {"rope_type": "su"}}, "rope_type is 'su', not one of default"),
        ({"rope": CONFIG["rope"] | {"turns\n": 1}}, r"an unknown field 'turns\\n'"),
        ({"rotary": 1}, "unknown field"),
    ],
)
def test_bad_configs_are_refused(change: dict[str, Any], message: str) -> None:
    """A wrong architecture in a manifest is named before anything is computed with it."""
    with pytest.raises(BundleError, match=message):
        stored_config({**CONFIG, **change})


def test_text_that_is_not_unicode_is_refused() -> None:
    """Half a surrogate pair and an endless integer are errors that name the document."""
    for text in (b'{"a":"\\ud800"}', b'{"a":' + b"9" * 5000 + b"}"):
        with pytest.raises(BundleError):
            Manifest.from_bytes(text)
    with pytest.raises(BundleError, match="not Unicode"):
        canonical_bytes(parse_document(b'{"a":"\\ud800"}', "x"))


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
    with pytest.raises(BundleError, match="its shape"):
        dataclasses.replace(entry, shape=(8, 3))  # two codes a byte along the last axis
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
