"""Damaged and misleading bundles: one line that names what is wrong, and its exit code."""

from __future__ import annotations

import hashlib
import json
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
    fails(capsys, 10, "manifest.json is damaged", "inspect", copy)


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


def damage_target(folder: Path, epsilon: float) -> None:
    """Give the target graph's norms another epsilon: still as planned, and wrong."""
    path = folder / "standard.float16.onnx"
    graph = onnx.load(path, load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = epsilon
    data = graph.SerializeToString(deterministic=True)
    path.write_bytes(data)

    def edit(values: dict[str, Any]) -> None:
        entry = next(f for f in values["files"] if f["path"] == path.name)
        entry.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    rehash(folder, edit)


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
