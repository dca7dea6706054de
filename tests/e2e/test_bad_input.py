"""Bad input: one line that names what is wrong and what to do, its exit code, nothing left."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import fails
from factories import make_config, random_tensors, write_checkpoint

from edgekit.cli.main import main
from edgekit.pipeline import build as build_module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", shards=2)


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
    # How torch.save began before 1.6: a pickled magic number.
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    (path / "pytorch_model.bin").write_bytes(magic)


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


def test_options_that_would_do_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibration data no recipe reads, a folder's revision and too large a context are refused."""
    out = tmp_path / "b"
    arguments = ["build", checkpoint, "--target", "cpu", "--out", out]
    data = tmp_path / "calibration.jsonl"
    fails(capsys, 3, "recipe w4a16-g64 uses no calibration data. Leave --calibration out, or use "
          "--recipe w4a16-gptq-g64", *arguments, "--calibration", data)  # fmt: skip
    fails(capsys, 4, "--revision abc chooses a version", *arguments, "--revision", "abc")
    fails(capsys, 5, "more than the model holds: 256 tokens", *arguments, "--max-context", 257)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("row", "message"),
    [('{"foo": 1}', "has none of text, messages and prompt"), ("[1]", "is not a JSON object")],
)
def test_calibration_data_of_the_wrong_form(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    """A calibrated recipe without data, or with a file of the wrong form, is refused by name."""
    arguments = ["build", checkpoint, "--target", "cpu", "--recipe", "w4a16-gptq-g64",
                 "--out", tmp_path / "b"]  # fmt: skip
    data = tmp_path / "calibration.jsonl"
    data.write_text(row + "\n")
    fails(capsys, 7, "needs calibration data. Give --calibration FILE", *arguments)
    fails(capsys, 7, message, *arguments, "--calibration", data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.jsonl", "checkpoint"]


def test_model_with_hardly_a_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that cannot hold a golden sequence is refused, not bundled to fail its check."""
    path = write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=31)
    fails(capsys, 5, "the model's context is 31 tokens, a bundle needs 32", "build", path,
          "--target", "cpu", "--out", tmp_path / "b")  # fmt: skip
    path = write_checkpoint(tmp_path / "least", max_position_embeddings=32)
    for arguments in (("build", path, "--target", "cpu", "--out", tmp_path / "b"),
                      ("verify", tmp_path / "b")):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments)])
        assert caught.value.code == 0, capsys.readouterr()


def test_fault_in_the_middle_leaves_nothing(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error nobody foresaw is one line, and leaves no work folder."""

    def fault(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(build_module, "write_graphs", fault)
    fails(capsys, 1, "internal error, ZeroDivisionError", "build", checkpoint, "--target", "cpu",
          "--out", tmp_path / "b")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_existing_output_is_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An existing output is refused, and a folder that is no bundle is never replaced."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    arguments = ["build", checkpoint, "--target", "cpu", "--out", tmp_path / "mine"]
    said = fails(capsys, 13, "exists already and is not a bundle. Choose another --out", *arguments)
    assert "--overwrite" not in said
    # Before anything is fetched: nobody waits an hour for this answer.
    arguments[1] = "nobody/nothing"
    assert fails(capsys, 13, "exists already", *arguments).count("\n") == 1
    arguments[1] = checkpoint
    fails(capsys, 13, "is not a bundle and is not replaced", *arguments, "--overwrite")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_what_is_no_bundle_is_called_what_it_is(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing there, a file, a folder of something else: each in its own words."""
    fails(capsys, 10, f"there is no {tmp_path / 'b'}. Check the path", "run", tmp_path / "b", "hi")
    file = checkpoint / "config.json"
    fails(capsys, 10, f"{file} is a file, and a bundle a folder. Give", "verify", file)
    fails(capsys, 10, f"{checkpoint} is not a bundle: it has no", "diff", checkpoint, checkpoint)


def test_error_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the error is a JSON document on stdout too."""
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path), "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "CheckpointError"
    assert error["exit_code"] == 4
    assert error["remedy"]


def test_default_output_is_not_inside_the_checkpoint(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built from inside its folder, a checkpoint needs --out: nothing is written into it."""
    before = sorted(checkpoint.iterdir())
    monkeypatch.chdir(checkpoint)
    with pytest.raises(SystemExit) as caught:
        main(["build", ".", "--target", "cpu"])
    assert caught.value.code == 2
    assert "give --out FOLDER" in capsys.readouterr().err
    assert sorted(checkpoint.iterdir()) == before
