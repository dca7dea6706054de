"""Bad input: one line that names what is wrong and what to do, its exit code, nothing left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint

from edgekit.bundle.reader import open_bundle
from edgekit.bundle.verify import verify_digests
from edgekit.cli.main import main
from edgekit.errors import BundleError, StorageError
from edgekit.pipeline.build import build
from edgekit.pipeline.request import BuildRequest
from edgekit.recipe import load_recipe
from edgekit.targets import TARGETS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", shards=2)


def fails(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object) -> str:
    """Run the command line; hold it to one line of error with this message and exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "error:" in line]
    assert caught.value.code == code, error
    assert len(lines) == 1, error
    assert message in " ".join(error.split()), error
    assert "Traceback" not in error
    return error


def shard(checkpoint: Path, index: int = 1) -> Path:
    return checkpoint / f"model-{index:05d}-of-00002.safetensors"


def edit_json(path: Path, **change: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change a safetensors header in place, keeping the data."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def missing_shard(path: Path) -> None:
    shard(path).unlink()


def truncated_shard(path: Path) -> None:
    data = shard(path).read_bytes()
    shard(path).write_bytes(data[: len(data) - 1000])


def truncated_header(path: Path) -> None:
    shard(path).write_bytes(shard(path).read_bytes()[:100])


def lying_header(path: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        row = header[next(k for k in header if k.endswith("gate_proj.weight"))]
        row["shape"] = [row["shape"][0] * 2, row["shape"][1]]

    edit_header(shard(path), edit)


def overlapping_tensors(path: Path) -> None:
    def edit(header: dict[str, Any]) -> None:
        names = [k for k in header if k.endswith("layernorm.weight")][:2]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    edit_header(shard(path), edit)


def nan_weights(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    tensors = random_tensors(config)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    shutil.rmtree(path)
    write_checkpoint(path, tensors=tensors)


def wrong_dtype(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    tensors: dict[str, Any] = random_tensors(config)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = np.zeros(tensors[name].shape, np.int8)
    shutil.rmtree(path)
    write_checkpoint(path, tensors=tensors)


def missing_tensor(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    tensors = random_tensors(config)
    del tensors["model.layers.0.self_attn.q_proj.bias"]
    shutil.rmtree(path)
    write_checkpoint(path, tensors=tensors)


def foreign_tensor(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    tensors = random_tensors(config)
    tensors["model.layers.0.self_attn.sinks"] = np.zeros(4, np.float32)
    shutil.rmtree(path)
    write_checkpoint(path, tensors=tensors)


def escaping_shard(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    names = dict.fromkeys(json.loads(index.read_text())["weight_map"], "../secret.safetensors")
    edit_json(index, weight_map=names)


def pickled_only(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"pickle")


def other_shapes(path: Path) -> None:
    edit_json(path / "config.json", intermediate_size=256)


def fourteen_billion(path: Path) -> None:
    edit_json(path / "config.json", hidden_size=5120, intermediate_size=13824,
              num_hidden_layers=48, num_attention_heads=40, num_key_value_heads=8,
              vocab_size=152064)  # fmt: skip


CASES: list[tuple[Callable[[Path], object], int, str]] = [
    (missing_shard, 4, "1 of 2 shards are missing"),
    (truncated_shard, 4, "reaches to"),
    (truncated_header, 4, "claims a header of"),
    (lying_header, 4, "the header lies about"),
    (overlapping_tensors, 4, "overlap another tensor's or leave a gap"),
    (nan_weights, 4, "model.layers.1.mlp.up_proj.weight holds NaN or infinity in row 3"),
    (wrong_dtype, 4, "model.layers.0.mlp.up_proj.weight has dtype I8"),
    (missing_tensor, 4, "lacks 1 of"),
    (foreign_tensor, 4, "model.layers.0.self_attn.sinks"),
    (escaping_shard, 4, "'../secret.safetensors', which is not a plain file name"),
    (pickled_only, 4, "unpickling executes code"),
    (other_shapes, 4, "config.json asks for"),
    (fourteen_billion, 5, "14.8 B parameters"),
    (lambda p: (p / "tokenizer.json").unlink(), 4, "has no tokenizer.json"),
    (lambda p: (p / "config.json").write_text("{"), 4, "config.json is not valid JSON"),
    (lambda p: (p / "config.json").unlink(), 4, "has no config.json"),
    (lambda p: edit_json(p / "config.json", model_type="mamba"), 5, "model_type 'mamba'"),
    (lambda p: (p / "tokenizer.json").write_text("{}"), 4, "tokenizer"),
]


@pytest.mark.parametrize(
    ("damage", "code", "message"), CASES, ids=[str(c[2]).replace(" ", "-")[:40] for c in CASES]
)
def test_damaged_checkpoint(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    code: int,
    message: str,
) -> None:
    """A damaged or foreign checkpoint is refused by name; no bundle and no work folder is left."""
    damage(checkpoint)
    out = tmp_path / "out" / "b"
    fails(capsys, code, message, "build", checkpoint, "--target", "orin", "--out", out)
    assert not out.exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".partial")]


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (np.nan, 4, "model.embed_tokens.weight holds NaN or infinity, first in row 4000"),
        (-np.inf, 4, "model.embed_tokens.weight holds NaN or infinity, first in row 4000"),
        (1e8, 8, "model.embed_tokens.weight has weights too large for float16 scales"),
    ],
)
def test_embedding_row_no_golden_sequence_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float, code: int, message: str
) -> None:
    """An int8 embedding with a row that cannot be stored is refused though nothing looks it up."""
    tensors = random_tensors(make_config("qwen2", vocab=4096))
    tensors["model.embed_tokens.weight"][4000, 7] = value
    path = write_checkpoint(tmp_path / "checkpoint", tensors=tensors)
    fails(capsys, code, message, "build", path, "--target", "cpu", "--recipe", "w8a16",
          "--out", tmp_path / "b")  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_model_that_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is no folder and no hub id is named."""
    fails(
        capsys, 4, "is neither a folder nor a hub id", "build", tmp_path / "no", "--target", "cpu"
    )


def test_unknown_recipe_key(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe with an unknown key is refused before anything is read."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text('schema_version = 1\nname = "mine"\n[quant.linear]\ngroupsize = 64\n')
    fails(capsys, 3, "unknown key 'groupsize'. Did you mean 'group_size'?", "build", checkpoint,
          "--target", "cpu", "--recipe", recipe)  # fmt: skip


def test_group_size_that_does_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group size that does not divide a linear names the linear and one that does."""
    path = write_checkpoint(tmp_path / "odd", intermediate=96)
    fails(capsys, 3, "model.layers.0.mlp.down_proj has 96 input channels", "build", path,
          "--target", "cpu", "--out", tmp_path / "b")  # fmt: skip


def test_model_that_does_not_fit(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Caches beyond the target's usable memory are refused with the figures."""
    fails(capsys, 5, "after its 20 % reserve", "build", checkpoint, "--target", "orin-32gb",
          "--max-sequences", 2_000_000, "--out", tmp_path / "b")  # fmt: skip


def test_existing_output_is_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An existing output is refused, and a folder that is no bundle is never replaced."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    arguments = ["build", checkpoint, "--target", "cpu", "--out", tmp_path / "mine"]
    fails(capsys, 13, "exists already", *arguments)
    fails(capsys, 13, "is not a bundle and is not replaced", *arguments, "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_error_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the error is a JSON document on stdout too."""
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "CheckpointError"
    assert error["exit_code"] == 4
    assert error["remedy"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    path = write_checkpoint(root / "checkpoint")
    return build(request(path, root / "b")).path


def request(checkpoint: Path, out: Path) -> BuildRequest:
    recipe = load_recipe("w4a16-g64")
    return BuildRequest(model=str(checkpoint), target=TARGETS["orin"], recipe=recipe, out=out)


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


def test_stray_file_is_found(bundle: Path, tmp_path: Path) -> None:
    """A file the manifest does not list is an error."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt is in the bundle but not in its manifest"):
        verify_digests(open_bundle(copy))


def test_disk_too_small(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little free space is refused before a byte is written, with both figures."""
    real = os.statvfs(tmp_path)
    values = list(real)
    values[3] = values[4] = 1  # f_bfree, f_bavail
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    with pytest.raises(StorageError, match="free, the bundle needs"):
        build(request(checkpoint, tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_disk_full_in_the_middle(checkpoint: Path, tmp_path: Path) -> None:
    """A write that hits a limit is a storage error; the next run resumes and succeeds."""
    script = (
        "import resource, sys; from edgekit.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main(sys.argv[1:])"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000
    out = tmp_path / "b"
    arguments = ["build", str(checkpoint), "--target", "orin", "--out", str(out)]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 13, result.stderr
    assert "no space left to write" in result.stderr
    assert not out.exists()
    build(request(checkpoint, out))
    verify_digests(open_bundle(out))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Drop root's privileges for a while, so that permissions count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission(checkpoint: Path, tmp_path: Path) -> None:
    """A folder that may not be written is named, with what to do."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):  # noqa: S108
            folder.chmod(folder.stat().st_mode | 0o055)
    with unprivileged(), pytest.raises(StorageError, match="no permission to write"):
        build(request(checkpoint, locked / "b"))
