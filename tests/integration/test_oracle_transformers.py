"""The NumPy reference computes what transformers computes in float32, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EXAMPLE, write_checkpoint

from edgekit.checkpoint.checkpoint import open_checkpoint
from edgekit.evaluate.reference import ReferenceModel
from edgekit.text.tokenizer import Tokenizer

pytestmark = pytest.mark.calibrate  # the oracle is torch

Array = np.ndarray[Any, Any]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"family": "qwen2"},
    "qwen2-tied": {"family": "qwen2", "tied": True, "layout": "legacy"},
    "llama-mha": {"family": "llama", "kv_heads": 4},
    "llama-mha-bias": {"family": "llama", "kv_heads": 4, "attention_bias": True, "mlp_bias": True},
    "llama-gqa-llama3": {"family": "llama", "kv_heads": 1, "rope": LLAMA3},
    "llama-linear": {"family": "llama", "rope": {"rope_type": "linear", "factor": 4.0}},
    "qwen3": {"family": "qwen3", "head_dim": 32},
    # DeepSeek-R1-0528-Qwen3-8B: attn_factor brings YaRN's mscale to 1.0.
    "qwen3-yarn": {
        "family": "qwen3",
        "head_dim": 32,
        "rope": {**YARN, "attn_factor": 1 / (0.1 * float(np.log(4.0)) + 1)},
    },
    "qwen3-yarn-mscale": {"family": "qwen3", "head_dim": 32, "rope": YARN, "layout": "legacy"},
}


def oracle_logits(path: Path, windows: list[Array]) -> list[Array]:
    """Return transformers' float32 logits, eager attention, one sequence at a time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    if "attn_factor" in config.rope_parameters:  # transformers 5.23 ignores it
        config.rope_parameters["attention_factor"] = 1.0
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return [model(torch.from_numpy(window)[None]).logits[0].numpy() for window in windows]


def assert_equal_logits(path: Path, windows: list[Array]) -> None:
    checkpoint = open_checkpoint(path)
    ours = ReferenceModel(checkpoint.config, checkpoint.tensor).logits(windows)
    for logits, wanted in zip(ours, oracle_logits(path, windows), strict=True):
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("options", FAMILIES.values(), ids=FAMILIES)
def test_random_models(tmp_path: Path, options: dict[str, Any]) -> None:
    """Logits of every family and rope type are transformers' within 1e-4 of the largest."""
    path = write_checkpoint(tmp_path / "checkpoint", tokenizer=False, dtype="f32", **options)
    rng = np.random.default_rng(11)
    assert_equal_logits(path, [rng.integers(0, 128, length) for length in (150, 33, 1)])


def test_the_trained_model() -> None:
    """Logits of the trained example over real text are transformers' within 1e-4."""
    text = (Path(__file__).parents[1] / "data" / "shakespeare_dev.txt").read_text("utf-8")
    ids = np.array(Tokenizer.from_folder(EXAMPLE).encode(text[:6000]), np.int64)
    assert_equal_logits(EXAMPLE, [ids[:512], ids[512:812]])
