"""Opening a checkpoint: whole ones open in every form, damaged ones are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EXAMPLE, make_config, random_tensors, to_bf16, write_checkpoint
from privileges import reachable, unprivileged

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.checkpoint.decode import bf16_to_float32
from edgekit.checkpoint.hub import resolve_model
from edgekit.checkpoint.lazy import read_all
from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.config import tensor_shapes
from edgekit.models.generation import GenerationDefaults, generation_defaults
from edgekit.text.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("layout", ["rope_parameters", "legacy"])
@pytest.mark.parametrize(("shards", "tied"), [(1, False), (3, True)])
def test_every_form_opens(
    tmp_path: Path, family: str, layout: str, shards: int, *, tied: bool
) -> None:
    """Family, config layout, sharding and tying do not change the weights that are read."""
    path = write_checkpoint(
        tmp_path / "c", family=family, layout=layout, shards=shards, tied=tied, tokenizer=False
    )
    checkpoint = open_checkpoint(path)
    wanted = random_tensors(make_config(family, layout=layout, tied=tied))
    assert checkpoint.names == tuple(sorted(wanted))
    assert checkpoint.config.tie_word_embeddings is tied
    for name, values in wanted.items():
        found = read_all(checkpoint.tensor(name))
        np.testing.assert_array_equal(found, bf16_to_float32(to_bf16(values)))
    assert checkpoint.stored_bytes == 2 * sum(values.size for values in wanted.values())
    assert len(checkpoint.shards) == shards
    assert all(file.is_file() for file in checkpoint.files)


def test_the_example_opens() -> None:
    """The trained checkpoint of the repository opens, with its tokenizer and generation config."""
    checkpoint = open_checkpoint(EXAMPLE)
    assert checkpoint.config.eos_token_ids
    assert checkpoint.generation_config
    names = {file.name for file in checkpoint.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    with pytest.raises(CheckpointError, match=r"holds no tensor model\.layers\.99"):
        checkpoint.tensor("model.layers.99.mlp.up_proj.weight")


def with_tensors(
    path: Path,
    change: Callable[[dict[str, Array]], Any],
    kinds: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Write a checkpoint whose tensors were changed after they were drawn."""
    tensors = random_tensors(make_config(**options))
    change(tensors)
    return write_checkpoint(path, tokenizer=False, tensors=tensors, kinds=kinds, **options)


def test_harmless_leftovers_are_left_out(tmp_path: Path) -> None:
    """Old rotary buffers and a tied head's copy are neither an error nor part of the model."""

    def change(tensors: dict[str, Array]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    checkpoint = open_checkpoint(with_tensors(tmp_path / "c", change, tied=True))
    assert set(checkpoint.names) == set(tensor_shapes(checkpoint.config))


def test_names_and_shapes_must_be_the_architecture_s(tmp_path: Path) -> None:
    """A missing, an unexplained and a misshapen tensor are each named, with the counts."""
    key = "model.layers.1.self_attn.k_proj.bias"
    cases: list[tuple[Callable[[dict[str, Array]], Any], str]] = [
        (lambda t: t.pop(key), f"lacks 1 of 27 tensors: {key}"),
        (
            lambda t: t.update({"model.layers.0.mlp.gate": np.ones(2, np.float32)}),
            "holds 1 tensors that a qwen2 of its config.json does not have: model.layers.0.mlp",
        ),
        (
            lambda t: t.update({key: np.ones(31, np.float32)}),
            f"{key} has shape [31], config.json asks for [32]",
        ),
    ]
    for index, (change, message) in enumerate(cases):
        path = with_tensors(tmp_path / str(index), change)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        assert message in caught.value.message
        assert caught.value.remedy


def index_of(path: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((path / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    return weight_map


def put_index(path: Path, weight_map: Any) -> None:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


ESCAPES = [
    "../c/x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "a\\x.safetensors",
    "x.safetensors/", "..", "", "x.bin", 7, None,
]  # fmt: skip


@pytest.mark.parametrize("shard", ESCAPES)
def test_shard_names_stay_inside_the_folder(tmp_path: Path, shard: object) -> None:
    """An index cannot name a file outside its folder, or anything but safetensors."""
    path = write_checkpoint(tmp_path / "c", shards=2, tokenizer=False)
    put_index(path, {**index_of(path), "model.norm.weight": shard})
    with pytest.raises(CheckpointError, match="is not a plain file name"):
        open_checkpoint(path)


@pytest.mark.parametrize("shards", [1, 2])
def test_links_stay_inside_the_folder(tmp_path: Path, shards: int) -> None:
    """A shard that is a link to somewhere else is refused; within the folder it is read."""
    path = write_checkpoint(tmp_path / "c", shards=shards, tokenizer=False)
    shard = min(path.glob("model*.safetensors"))
    inside = shard.rename(path / "elsewhere.bin")
    shard.symlink_to(inside.name)
    open_checkpoint(path)
    shard.unlink()
    shard.symlink_to(inside.rename(tmp_path / "outside.bin"))
    with pytest.raises(CheckpointError, match="is a link that leaves its folder"):
        open_checkpoint(path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    """Missing shards are counted; a tensor in another shard than the index says is named."""
    path = write_checkpoint(tmp_path / "c", shards=3, tokenizer=False)
    weight_map = index_of(path)
    first, second = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
    key = next(key for key, shard in weight_map.items() if shard == first)
    put_index(path, {**weight_map, key: second})
    with pytest.raises(CheckpointError, match=f"{first} holds {key}, which .* places in {second}"):
        open_checkpoint(path)
    put_index(path, {**weight_map, "model.ghost": second})
    with pytest.raises(CheckpointError, match=r"places model\.ghost in .*, which does not hold it"):
        open_checkpoint(path)
    put_index(path, {})
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_checkpoint(path)
    put_index(path, weight_map)
    (path / first).unlink()
    (path / second).unlink()
    with pytest.raises(CheckpointError, match="2 of 3 shards are missing") as caught:
        open_checkpoint(path)
    assert first in caught.value.message
    assert "interrupted download is resumed" in caught.value.remedy


def test_what_is_no_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    """Pickled weights, no weights, no tokenizer, no folder: each has its own remedy."""
    path = write_checkpoint(tmp_path / "c")
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json\. Convert tokenizer\.model"):
        open_checkpoint(path)
    path = write_checkpoint(tmp_path / "d")
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors and no"):
        open_checkpoint(path)
    (path / "pytorch_model-00001-of-00002.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is not read by itself\. Convert it once, where"):
        open_checkpoint(path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ("[]", "must hold a JSON object"), ("{", "is not valid JSON"), ("\udcff", "is not valid JSON"),
    ("[" * 200_000, "is not valid JSON"),
])  # fmt: skip
def test_config_must_be_a_json_object(tmp_path: Path, text: str, message: str) -> None:
    """A damaged config.json is an error of the checkpoint, not a crash."""
    path = write_checkpoint(tmp_path / "c")
    (path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_weights_must_be_floats(tmp_path: Path) -> None:
    """An integer weight is a wrong type; one that looks quantized points at the config."""
    key = "model.layers.0.mlp.up_proj"

    def integers(tensors: dict[str, Array]) -> None:
        tensors[f"{key}.weight"] = np.zeros((128, 64), np.int8)

    def packed(tensors: dict[str, Array]) -> None:
        tensors[f"{key}.qweight"] = np.zeros((8, 128), np.int32)

    with pytest.raises(CheckpointError, match=r"up_proj\.weight has dtype I8, weights must be"):
        open_checkpoint(with_tensors(tmp_path / "a", integers))
    with pytest.raises(CheckpointError, match="It looks quantized: restore quantization_config"):
        open_checkpoint(with_tensors(tmp_path / "b", packed))


def test_unread_quantization_is_refused(tmp_path: Path) -> None:
    """Other methods, bitsandbytes among them, are named, with those that are read."""
    path = write_checkpoint(tmp_path / "c", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UnsupportedModelError, match="'bitsandbytes'; edgekit reads fp8, gptq, awq"):
        open_checkpoint(path)


def test_fp8_checkpoint_opens(tmp_path: Path) -> None:
    """DeepSeek's block-scaled fp8 beside bf16 norms opens as one model."""
    key = "model.layers.0.mlp.up_proj.weight"

    def change(tensors: dict[str, Array]) -> None:
        tensors[key] = np.full((128, 64), 0x38, np.uint8)  # 1.0
        tensors[f"{key}_scale_inv"] = np.full((2, 1), 0.5, np.float32)

    fp8 = {"quant_method": "fp8", "weight_block_size": [64, 64], "fmt": "e4m3"}
    path = with_tensors(tmp_path / "c", change, quantization_config=fp8, kinds={key: "F8_E4M3"})
    checkpoint = open_checkpoint(path)
    assert (read_all(checkpoint.tensor(key)) == 0.5).all()
    assert checkpoint.tensor(key).stored_bytes == 128 * 64 + 2 * 2
    broken = with_tensors(
        tmp_path / "d",
        lambda t: t.update({key: np.zeros((128, 64), np.uint8)}),
        quantization_config=fp8, kinds={key: "F8_E4M3"},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match=f"{key} is fp8 but {key}_scale_inv is missing"):
        open_checkpoint(broken)


READ_FILES = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja", "special_tokens_map.json", "model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", READ_FILES)
def test_no_file_is_a_link_out_of_the_folder(tmp_path: Path, name: str) -> None:
    """No file that is read or copied into a bundle can be a link to one of the machine's own."""
    path = write_checkpoint(tmp_path / "c")
    (path / name).touch()
    (path / name).rename(tmp_path / "secret")
    (path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link that leaves its folder"):
        open_checkpoint(path)


def test_an_index_is_no_link_out_of_the_folder(tmp_path: Path) -> None:
    """Nor can the index of the shards."""
    path = write_checkpoint(tmp_path / "c", shards=2)
    index = path / "model.safetensors.index.json"
    index.rename(tmp_path / "secret")
    index.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="is a link that leaves its folder"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", READ_FILES)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    """A file without permission is one line that names it, before anything is written."""
    path = reachable(write_checkpoint(tmp_path / "c"))
    (path / name).touch()
    if name == "generation_config.json":
        (path / name).write_text("{}")
    (path / name).chmod(0)
    with unprivileged(), pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert f"cannot read {path / name}: Permission denied" in caught.value.message
    assert caught.value.remedy == "Change its owner or mode"


def test_a_locked_folder_is_named(tmp_path: Path) -> None:
    """So is a folder that cannot be looked into."""
    path = reachable(write_checkpoint(tmp_path / "locked" / "c")).parent
    path.chmod(0o700)
    with unprivileged():
        for look in (open_checkpoint, lambda where: resolve_model(str(where))):
            with pytest.raises(CheckpointError, match=r"cannot read .*: Permission denied"):
                look(path / "c")


def test_byte_order_marks_are_skipped(tmp_path: Path) -> None:
    """UTF-8 as some editors write it reads like any other."""
    path = write_checkpoint(tmp_path / "c")
    plain = open_checkpoint(path).config
    for name in ("config.json", "tokenizer_config.json"):
        (path / name).write_bytes(b"\xef\xbb\xbf" + (path / name).read_bytes())
    assert open_checkpoint(path).config == plain
    assert Tokenizer.from_folder(path).eos_token


BAD_GENERATION: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "0.6"}, "temperature is '0.6', it must be a number"),
    ({"temperature": 3.0}, "temperature is 3.0, it must be from 0 to 2"),
    ({"temperature": 10**400}, "temperature is inf"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0}, "top_p is 0"),
    ({"top_p": [0.9]}, "top_p is [0.9], it must be a number"),
    ({"top_k": -2}, "top_k is -2, it must be a number of tokens"),
    ({"top_k": 2.5}, "top_k is 2.5"),
    ({"top_k": True}, "top_k is True"),
    ({"do_sample": "yes"}, "do_sample is 'yes', it must be true or false"),
]


@pytest.mark.parametrize(("change", "message"), BAD_GENERATION)
def test_generation_config_is_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Sampling that nothing can run with is an error of the checkpoint, not of its first answer."""
    path = write_checkpoint(tmp_path / "c", tokenizer=False)
    (path / "generation_config.json").write_text(json.dumps({"do_sample": True, **change}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert message in caught.value.message


def test_generation_defaults() -> None:
    """Null and absent are the same, -1 keeps every token, and without sampling all is greedy."""
    sampled = {"do_sample": True, "temperature": None, "top_p": 0.95, "top_k": -1}
    assert generation_defaults(sampled) == GenerationDefaults(1.0, 0.95, 0)
    assert generation_defaults({"temperature": 0.6, "top_k": 20}) == GenerationDefaults()
    assert generation_defaults({"do_sample": None}) == GenerationDefaults()


def test_numbers_of_thousands_of_digits(tmp_path: Path) -> None:
    """An integer that Python does not convert is bad JSON, not a traceback."""
    path = write_checkpoint(tmp_path / "c", tokenizer=False)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(
        text.replace('"hidden_size": 64', f'"hidden_size": {"9" * 5000}')
    )
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        open_checkpoint(path)
