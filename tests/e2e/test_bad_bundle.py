"""Damaged and misleading bundles: one line that names what is wrong, and its exit code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bad_input import fails, request
from factories import EXAMPLE, write_checkpoint

from edgekit.bundle.reader import map_blob, open_bundle
from edgekit.bundle.verify import verify_digests
from edgekit.contracts.canonical import canonical_bytes
from edgekit.contracts.manifest import TensorEntry
from edgekit.errors import BundleError, QualityError
from edgekit.pipeline import stored_tensors
from edgekit.pipeline.build import build


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    path = write_checkpoint(root / "checkpoint")
    return build(request(path, root / "b")).path


def test_any_flipped_bit_is_found(bundle: Path) -> None:
    """One flipped bit anywhere, manifest and its digest included, is found and named."""
    rng = np.random.default_rng(11)
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        data = bytearray(path.read_bytes())
        for at in {0, len(data) - 1, int(rng.integers(len(data)))}:
            bit = 1 << int(rng.integers(8))
            data[at] ^= bit
            path.write_bytes(data)
            with pytest.raises(BundleError):
                verify_digests(open_bundle(bundle))
            data[at] ^= bit
        path.write_bytes(data)
    verify_digests(open_bundle(bundle))


def test_damaged_bundle_on_the_command_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """verify, run and inspect refuse a damaged bundle with exit code 10 and the file's name."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    blob = next(copy.glob("blobs/*/*"))
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)
    fails(capsys, 10, f"blobs/{blob.parent.name}/{blob.name} is damaged", "verify", copy)
    blob.unlink()
    fails(capsys, 10, "is missing from", "run", copy, "hello")
    (copy / "manifest.json").write_text("{}")
    for command in (("inspect", copy), ("run", copy, "hello"), ("verify", copy)):
        said = fails(capsys, 10, "manifest.json is damaged: its digest is", *command)
        assert re.search(r"manifest\.sha256 says [0-9a-f]{64}\. Fetch or build", said)
    (copy / "manifest.sha256").write_text("")
    fails(capsys, 10, "manifest.sha256 is damaged: it holds no sha256", "run", copy, "hello")


def rehash(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and give it the digest of what it says now."""
    values = json.loads((folder / "manifest.json").read_text())
    edit(values)
    data = canonical_bytes(values)
    (folder / "manifest.json").write_bytes(data)
    (folder / "manifest.sha256").write_text(hashlib.sha256(data).hexdigest() + "\n")


MANIFESTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda m: m["graphs"][0].update(path="../outside.onnx"), "'../outside.onnx' is not a plain"),
    (lambda m: m["tensors"].insert(0, ["x"]), "tensors[0] is not a JSON object"),
    (lambda m: m.update(limits={}), "limits lacks 'max_context'"),
    (lambda m: m.update(model={}), "model lacks 'source'"),
    (lambda m: m["files"][0].update(path=7), "files[0]: 'path' must be a string, not 7"),
    (lambda m: m["limits"].update(max_context="many"), "not 'many'"),
    (lambda m: m["model"]["config"].pop("head_dim"), "config lacks 'head_dim'"),
    (lambda m: m.update(files=[f for f in m["files"] if f["path"] != "golden.json"]),
     "names golden.json but does not list it"),
    (lambda m: m.update(engine_plans=m["engine_plans"] * 2), "two engine plans of one graph"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), MANIFESTS, ids=[c[1][:30] for c in MANIFESTS])
def test_misleading_manifest(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    """A manifest whose own digest is right and whose fields are wrong is refused by name."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    shutil.copy(next(bundle.glob("*.onnx")), tmp_path / "outside.onnx")
    rehash(copy, edit)
    for command in (("verify", copy), ("verify", copy, "--no-run"), ("inspect", copy)):
        fails(capsys, 10, message, *command)


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file of a bundle anew and give the manifest its size and digest."""
    (folder / name).write_bytes(data)

    def note(manifest: dict[str, Any]) -> None:
        entry = next(f for f in manifest["files"] if f["path"] == name)
        entry.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    rehash(folder, note)


LISTS: list[tuple[dict[str, Any], str]] = [
    ({"shape": [2**40, 1, 32]}, "which [64, 4096] do not give"),
    ({"sources": ["nowhere"]}, "lm_head.nbits_codes is made from nowhere, which is not there"),
    ({"dtype": "float32"}, "lm_head.nbits_codes is float32 made from int4"),
]


@pytest.mark.parametrize(("change", "message"), LISTS, ids=[c[1][-20:] for c in LISTS])
def test_misleading_list_of_weights(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    message: str,
) -> None:
    """A list of weights made at load that asks for what the blobs do not give is refused."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)

    values = json.loads((copy / "ort.float32.weights.json").read_text())
    next(r for r in values["derived"] if r["name"] == "lm_head.nbits_codes").update(change)
    replace_file(copy, "ort.float32.weights.json", canonical_bytes(values))
    fails(capsys, 10, message, "run", copy, "hello")
    fails(capsys, 9, "does not list what ort.float32.onnx reads", "verify", copy)


def of_codes(**change: Any) -> Callable[[dict[str, Any]], object]:
    """Return an edit of the head's codes in a manifest."""
    return lambda m: next(t for t in m["tensors"] if t["name"] == "lm_head.codes").update(change)


SCHEMES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (of_codes(scheme="w4-gx"), "lm_head: 'w4-gx' is no scheme. Upgrade edgekit"),
    (of_codes(scheme="w4-g48"), "not a multiple of group size 48"),
    (of_codes(scheme="w8-g64"), "not int8 [64, 4096]"),
    (lambda m: m["tensors"].remove(next(t for t in m["tensors"] if t["name"] == "lm_head.scales")),
     "lm_head has no float16 scales of [1, 4096]"),
]  # fmt: skip
EXPONENTS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda m: m["f16_exponents"].update(mlp=[1]), "mlp has 1 entries for 2 layers"),
    (lambda m: m["f16_exponents"].update(residual=2**50), "residual is beyond +-149"),
]


STORED = [(*case, True) for case in SCHEMES] + [(*case, False) for case in EXPONENTS]


@pytest.mark.parametrize(
    ("edit", "message", "planned"), STORED, ids=[case[1][:30] for case in STORED]
)
def test_base_that_misleads(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
    message: str,
    planned: bool,  # noqa: FBT001 - a case
) -> None:
    """`build --base` and `plan` refuse schemes and exponents that no architecture has."""
    copy, checkpoint = tmp_path / "copy", bundle.parent / "checkpoint"
    shutil.copytree(bundle, copy)
    rehash(copy, edit)
    base = ("build", checkpoint, "--target", "orin", "--base", copy, "--out", tmp_path / "b")
    fails(capsys, 10, message, *base)
    if planned:
        fails(capsys, 10, message, "plan", copy, "--target", "orin")


SIZES: list[tuple[Callable[[dict[str, Any]], object], int, str]] = [
    (lambda m: m["model"]["config"].update(num_hidden_layers=4), 11, "not the caches of 4 layers"),
    (lambda m: m["model"]["config"].update(num_key_value_heads=2**40), 11, "1099511627776 heads"),
    (lambda m: m["model"]["config"].update(vocab_size=2**50), 11, "not logits of"),
    (lambda m: (m["limits"].update(max_context=2**24),
                [p.update(cache_capacity=2**24) for p in m["engine_plans"]]),
     10, "has no rope.cos of [16777216, 8], as its limits say"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "code", "message"), SIZES, ids=[c[2][:30] for c in SIZES])
def test_sizes_that_mislead(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[dict[str, Any]], object],
    code: int,
    message: str,
) -> None:
    """An architecture that is not the graph's is refused before caches are made by its sizes."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    rehash(copy, edit)
    fails(capsys, code, message, "run", copy, "hello")


def test_graph_that_is_no_text(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name of a graph that is not UTF-8 fails verify and run in one line."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    for name in ("standard.float16.onnx", "ort.float32.onnx"):
        data = (copy / name).read_bytes().replace(b"past_key_0", b"past_key_\xe3")
        replace_file(copy, name, data)
    fails(capsys, 9, "standard.float16.onnx is not valid ONNX: a name in it is not", "verify", copy)
    fails(capsys, 11, "refuses ort.float32.onnx", "run", copy, "hello")


def test_two_engines_are_too_many(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plans of two graphs are a newer edgekit's: verify says so rather than compile one."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    rehash(
        copy,
        lambda m: m["engine_plans"].append({**m["engine_plans"][0], "graph": "ort.float16"}),
    )
    fails(capsys, 10, "has 2 engine plans, this edgekit compiles one", "verify", copy)


def damage_target(folder: Path, epsilon: float) -> None:
    """Give the target graph's norms another epsilon: still as planned, and wrong."""
    path = folder / "standard.float16.onnx"
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = epsilon
    replace_file(folder, path.name, graph.SerializeToString(deterministic=True))


@pytest.mark.parametrize(
    ("epsilon", "code", "message"),
    [
        (10.0, 12, "the golden sequences fail on standard.float16: mean_abs_difference_nats is"),
        (-1e6, 11, "standard.float16: the model gave NaN or infinite logits"),
    ],
)
def test_wrong_target_graph_is_found(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    epsilon: float,
    code: int,
    message: str,
) -> None:
    """A target graph that computes something else than the host's fails verify, by name."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    damage_target(copy, epsilon)
    fails(capsys, code, message, "verify", copy)


def test_broken_quantization_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales that belong to another channel miss the default recipe's limits; nothing is left."""
    real = map_blob

    def mapped(root: Path, entry: TensorEntry) -> Any:
        data = real(root, entry)
        return np.roll(data, 1, axis=-1) if entry.role == "scales" else data

    monkeypatch.setattr(stored_tensors, "map_blob", mapped)
    with pytest.raises(QualityError, match=r"KL divergence .* the recipe allows 1\.0"):
        build(request(EXAMPLE, tmp_path / "b"))
    assert not list(tmp_path.iterdir())


def test_stray_file_is_found(bundle: Path, tmp_path: Path) -> None:
    """A file the manifest does not list is an error."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt is in the bundle but not in its manifest"):
        verify_digests(open_bundle(copy))
