"""Merging LoRA adapters: equal to PEFT's own merge, and what a merge cannot say is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config, random_tensors, write_checkpoint, write_safetensors

from edgekit.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edgekit.checkpoint.lazy import read_all
from edgekit.errors import CheckpointError, UnsupportedModelError

Array = np.ndarray[Any, Any]
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 10, "bias": "none", "use_rslora": False,
    "use_dora": False, "fan_in_fan_out": False, "init_lora_weights": True, "rank_pattern": {},
    "alpha_pattern": {}, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.05,
    "base_model_name_or_path": "somebody/else", "task_type": "CAUSAL_LM", "modules_to_save": None,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", tokenizer=False, dtype="f32")


def factors(module: str, rank: int = 4) -> tuple[Array, Array]:
    shape = random_tensors(make_config())[f"{module}.weight"].shape
    rng = np.random.default_rng(len(module))
    down = rng.standard_normal((rank, shape[1])).astype(np.float32)
    return down, rng.standard_normal((shape[0], rank)).astype(np.float32)


def write_adapter(
    path: Path, change: dict[str, Any] | None = None, tensors: dict[str, Array] | None = None
) -> Path:
    """Write an adapter of rank 4 for three modules, or of these tensors."""
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **(change or {})}))
    if tensors is None:
        tensors = {}
        for module in MODULES:
            down, up = factors(module)
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = up
    write_safetensors(path / "adapter_model.safetensors", tensors, "f32")
    return path


def check_merged(checkpoint: Checkpoint, scalings: dict[str, float]) -> None:
    """Hold merged weights to ``W + scaling * B @ A`` and the others to what they were."""
    for key, weight in random_tensors(make_config()).items():
        module = key.removesuffix(".weight")
        wanted = weight.astype(np.float64)
        if module in scalings:
            down, up = factors(module)
            wanted = wanted + scalings[module] * (up.astype(np.float64) @ down)
        tensor = checkpoint.tensor(key)
        np.testing.assert_allclose(read_all(tensor), wanted, rtol=1e-5, atol=1e-5)
        if weight.ndim == 2:
            np.testing.assert_allclose(tensor.rows(3, 20), wanted[3:20], rtol=1e-5, atol=1e-5)


def test_factors_are_added_to_their_weights(tmp_path: Path, base: Path) -> None:
    """A merged weight is W + alpha / r * B @ A; the adapter's files are among those read."""
    adapter = write_adapter(tmp_path / "adapter")
    checkpoint = open_checkpoint(base, adapter=adapter)
    check_merged(checkpoint, dict.fromkeys(MODULES, 2.5))
    assert {adapter / "adapter_config.json", adapter / "adapter_model.safetensors"} <= set(
        checkpoint.files
    )
    plain = open_checkpoint(base)
    assert checkpoint.stored_bytes > plain.stored_bytes


def test_scaling_follows_rslora_and_patterns(tmp_path: Path, base: Path) -> None:
    """With rsLoRA alpha is divided by the root of r; alpha_pattern sets a module's own."""
    change = {"use_rslora": True, "alpha_pattern": {"down_proj": 6, "^lm_head": 2}}
    checkpoint = open_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", change))
    alphas = dict(zip(MODULES, (10, 6, 2), strict=True))
    check_merged(checkpoint, {name: alpha / math.sqrt(4) for name, alpha in alphas.items()})


@pytest.mark.calibrate
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, when PEFT calls it
@pytest.mark.parametrize("rslora", [False, True])
def test_merging_equals_peft(tmp_path: Path, base: Path, *, rslora: bool) -> None:
    """An adapter written by PEFT merges to what PEFT's merge_and_unload gives."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"], use_rslora=rslora,
        rank_pattern={"down_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 5},
        init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(tmp_path / "adapter"))
    merged = model.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(base, adapter=tmp_path / "adapter")
    for name in checkpoint.names:
        found = read_all(checkpoint.tensor(name))
        np.testing.assert_allclose(found, merged[name].numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; edgekit merges LORA"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow = 1"),
        ({"alpha_pattern": {".*q_proj": 3}}, "alpha_pattern has the expression '.*q_proj'"),
    ],
)
def test_what_a_merge_cannot_say_is_refused(
    tmp_path: Path, base: Path, change: dict[str, Any], message: str
) -> None:
    """Settings that a plain merge would get wrong are refused by name; PEFT can merge them."""
    with pytest.raises(UnsupportedModelError) as caught:
        open_checkpoint(base, adapter=write_adapter(tmp_path / "adapter", change))
    assert message in caught.value.message
    assert "merge_and_unload" in caught.value.remedy


def test_an_adapter_must_fit_its_base(tmp_path: Path, base: Path) -> None:
    """Unknown modules, other shapes, ranks and half pairs are named."""
    down, up = factors(MODULES[0])
    prefix = f"base_model.model.{MODULES[0]}.lora_"
    good = {f"{prefix}A.weight": down, f"{prefix}B.weight": up}
    other = {name.replace("layers.0", "layers.9"): factor for name, factor in good.items()}
    cases: list[tuple[dict[str, Any], dict[str, Array], str]] = [
        ({}, other, "layers.9.self_attn.q_proj, which the base model does not have. It was trained "
                    "on somebody/else"),
        ({}, {**good, f"{prefix}A.weight": down[:, 1:]}, "[4, 63] and [64, 4], the weight is"),
        ({}, {f"{prefix}A.weight": down}, f"lacks {prefix}B.weight"),
        ({"r": 8}, good, "declares rank 8 for model.layers.0.self_attn.q_proj, its factors have 4"),
        ({"lora_alpha": "x"}, good, "lora_alpha must be a positive number, is 'x'"),
        ({}, {}, "holds no tensors"),
        ({}, {**good, "base_model.model.model.embed_tokens.lora_embedding_A": down},
         "lora_embedding_A, which is not a LoRA factor of a linear"),
        ({}, {**good, f"{prefix}magnitude_vector": up[:, 0]}, "is not a LoRA factor"),
    ]  # fmt: skip
    for index, (change, tensors, message) in enumerate(cases):
        adapter = write_adapter(tmp_path / str(index), change, tensors)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(base, adapter=adapter)
        assert message in str(caught.value)


def test_a_tied_head_cannot_be_changed(tmp_path: Path) -> None:
    """An update of a head that is the embedding would change the embedding too: refused."""
    tied = write_checkpoint(tmp_path / "tied", tokenizer=False, tied=True)
    with pytest.raises(UnsupportedModelError, match="shares with its embedding"):
        open_checkpoint(tied, adapter=write_adapter(tmp_path / "adapter"))


def test_missing_files_are_named(tmp_path: Path, base: Path) -> None:
    """A folder that is no adapter, and one saved without safetensors, say what to do."""
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        open_checkpoint(base, adapter=tmp_path)
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="Save the adapter with safetensors"):
        open_checkpoint(base, adapter=adapter)
