"""Configurations: every published one is read, every unmodelled key is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import make_config

from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.config import ModelConfig, count_parameters
from edgekit.models.families import model_config_from_hf
from edgekit.models.published import PUBLISHED
from edgekit.models.rope import cos_sin_tables, inverse_frequencies
from edgekit.models.rope_config import rope_config

CONFIGS = Path(__file__).parents[2] / "data" / "configs"


def published(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return data


READABLE = sorted(
    p.stem
    for p in CONFIGS.glob("*.json")
    if p.stem not in {"DeepSeek-V2-Lite", "DeepSeek-R1-Distill-Qwen-14B"}
)


@pytest.mark.parametrize("name", READABLE)
def test_published_config_is_read(name: str) -> None:
    """A published configuration gives the parameters and cache the table of models states."""
    config = model_config_from_hf(published(name))
    model = next(m for m in PUBLISHED if m.hub_id.endswith("/" + name))
    assert count_parameters(config) == model.parameters
    assert config.max_position_embeddings == model.context
    cache = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert cache == model.cache_bytes_per_token
    assert config.model_type == model.family
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_published_model_has_its_configuration() -> None:
    """No row of the table stands without the ``config.json`` that it is counted from."""
    assert {m.hub_id.rpartition("/")[2] for m in PUBLISHED} == set(READABLE)


def test_every_published_model_is_under_the_limit_and_unique() -> None:
    """The table holds each model once, all below 13 B parameters."""
    assert len({m.hub_id for m in PUBLISHED}) == len(PUBLISHED)
    assert max(m.parameters for m in PUBLISHED) < 13_000_000_000


def test_attn_factor_multiplies_the_mscale() -> None:
    """R1-0528-Qwen3-8B's attn_factor and YaRN's mscale give 1.0 together."""
    rope = model_config_from_hf(published("DeepSeek-R1-0528-Qwen3-8B")).rope
    assert rope.attention_factor == pytest.approx(1.0, abs=1e-9)


def test_attention_factor_replaces_the_mscale() -> None:
    """The standard key keeps its meaning: it is the factor itself."""
    section = {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7}
    assert rope_config({"rope_parameters": section}, 1024).attention_factor == 0.7


def test_both_layouts_mean_the_same() -> None:
    """Top-level rope_theta with rope_scaling equals rope_parameters."""
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
    new = model_config_from_hf(make_config("llama", rope=rope))
    old = model_config_from_hf(make_config("llama", rope=rope, layout="legacy"))
    assert new == old
    assert new.rope.factor == 4.0


def test_nulls_and_defaults_of_the_rope_section_are_inert() -> None:
    """Keys that transformers 5 writes at values that change nothing are not refused."""
    extra = {"factor": None, "partial_rotary_factor": 1.0, "truncate": True, "mscale": None}
    plain = make_config("llama")
    section = {**plain["rope_parameters"], **extra}
    assert model_config_from_hf({**plain, "rope_parameters": section}) == model_config_from_hf(
        plain
    )


ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096,
     "mscale": 0.8, "mscale_all_dim": 1.2},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0,
     "original_max_position_embeddings": 32768},
]  # fmt: skip


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.calibrate
@pytest.mark.parametrize("section", ROPES, ids=lambda s: str(s["rope_type"]))
def test_frequencies_equal_transformers(section: dict[str, Any]) -> None:
    """Frequencies and attention factor are those of transformers, for every rope type."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theta = {"rope_theta": 500000.0, **section}
    oracle = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=512,
            num_attention_heads=4,
            max_position_embeddings=16384,
            rope_parameters=theta,
        )
    )
    rope = rope_config({"rope_parameters": theta}, 16384)
    wanted = oracle.inv_freq.double().numpy()
    np.testing.assert_allclose(inverse_frequencies(rope, 128), wanted, rtol=2e-6)
    assert rope.attention_factor == pytest.approx(float(oracle.attention_scaling))


def test_tables_are_cos_and_sin_of_the_angles() -> None:
    """Tables hold cos and sin of position times frequency, times the attention factor."""
    rope = rope_config({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 1024)
    cos, sin = cos_sin_tables(rope, 8, np.array([0, 1, 700]))
    angles = np.array([0, 1, 700])[:, None] * inverse_frequencies(rope, 8)
    np.testing.assert_allclose(cos, np.cos(angles) * rope.attention_factor, rtol=1e-6)
    np.testing.assert_allclose(np.hypot(cos, sin), rope.attention_factor, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frobnicate": 1}, "config.json has frobnicate = 1, which edgekit does not model"),
        ({"use_sliding_window": True}, "use_sliding_window = True, which changes the model"),
        ({"use_mrope": True}, "use_mrope = True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "odd": 1}}, "has odd = 1"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "rope type ['x']"),
        ({"rope_parameters": {"rope_type": {}}}, "rope type {}"),
        ({"layer_types": [["full_attention"]]}, "layer_types"),
        ({"model_type": ["qwen2"]}, "model_type ['qwen2']"),
        (
            {"architectures": ["DeepseekV3ForCausalLM"]},
            "architectures 'DeepseekV3ForCausalLM' and model_type 'qwen2', which are not one model",
        ),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "Qwen2ForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias = True, which changes the model"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"model_type": "gpt2"}, "model_type 'gpt2'; edgekit builds qwen2, llama, qwen3"),
    ],
)
def test_unmodelled_is_refused(change: dict[str, Any], message: str) -> None:
    """What would change the logits and is not modelled is refused, with a remedy."""
    with pytest.raises(UnsupportedModelError) as caught:
        model_config_from_hf({**make_config("qwen2"), **change})
    assert message in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "64"}, "hidden_size must be of type int"),
        ({"hidden_size": 0}, "outside 1 to"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"rms_norm_eps": None}, "lacks rms_norm_eps"),
        ({"rope_theta": 5.0}, "rope_theta 5.0 and, in its rope section, 10000.0"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope type linear lacks factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, "must be a positive number"),
        ({"eos_token_id": ["</s>"]}, "eos_token_id must be a token id below 128"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "and another rope_scaling"),
        ({"rope_parameters": [1]}, "the rope section must be an object"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0, outside 1e-12 to 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps is inf"),
        ({"hidden_size": 10**400}, "hidden_size is 1"),
        ({"num_hidden_layers": 2**24}, "num_hidden_layers is 16777216, outside 1 to 1024"),
        ({"bos_token_id": 10**9}, "bos_token_id must be a token id below 128"),
        ({"bos_token_id": True}, "bos_token_id must be a token id"),
        ({"eos_token_id": -1}, "eos_token_id must be a token id"),
        ({"eos_token_id": 10**30}, "eos_token_id must be a token id"),
        ({"pad_token_id": 128}, "pad_token_id must be a token id below 128"),
        ({"architectures": "Qwen2ForCausalLM"}, "architectures must be a list of names"),
        ({"rope_parameters": {**YARN, "rope_theta": 1.0}}, "rope_theta must be more than 1"),
        (
            {"rope_parameters": {**YARN, "rope_theta": float("inf")}},
            "rope_theta must be a positive",
        ),
        ({"rope_parameters": {**YARN, "factor": 10**400}}, "factor must be a positive number"),
        (
            {"rope_parameters": {**YARN, "original_max_position_embeddings": 0.5}},
            "original_max_position_embeddings must be a whole number of tokens, is 0.5",
        ),
        ({"rope_parameters": {**YARN, "beta_fast": 1e-320}}, "beta_fast must be a positive number"),
        (
            {"rope_parameters": {**ROPES[2], "high_freq_factor": 1.0}},
            "low_freq_factor must be below high_freq_factor",
        ),
    ],
)
def test_damaged_config_is_named(change: dict[str, Any], message: str) -> None:
    """A missing or impossible value is named."""
    with pytest.raises(CheckpointError) as caught:
        model_config_from_hf({**make_config("qwen2"), **change})
    assert message in str(caught.value)


def test_fourteen_billion_is_refused() -> None:
    """A 14B model is refused with its size, the reason and what to use instead."""
    with pytest.raises(UnsupportedModelError) as caught:
        model_config_from_hf(published("DeepSeek-R1-Distill-Qwen-14B"))
    assert "14.8 B parameters" in caught.value.message
    assert "DeepSeek-R1-0528-Qwen3-8B" in caught.value.remedy


def test_mixture_of_experts_is_refused() -> None:
    """MLA and mixtures of experts are refused by name, with a dense alternative."""
    with pytest.raises(UnsupportedModelError) as caught:
        model_config_from_hf(published("DeepSeek-V2-Lite"))
    assert "latent attention" in caught.value.message
    assert "dense DeepSeek model" in caught.value.remedy


DUMPS = [("qwen2", "Qwen2Config"), ("llama", "LlamaConfig"), ("qwen3", "Qwen3Config")]


@pytest.mark.parametrize(("family", "name"), DUMPS)
def test_full_dumps_are_read(family: str, name: str) -> None:
    """Every key that transformers can write is known, and inert at its usual value."""
    import transformers

    plain = make_config(family, head_dim=16 if family == "qwen3" else None)
    own = {k: v for k, v in plain.items() if k != "model_type"}
    dumped = json.loads(getattr(transformers, name)(**own).to_json_string(use_diff=False))
    assert len(dumped) > len(plain) + 8
    extra = {
        "unsloth_version": "2025.3", "tokenizer_class": "LlamaTokenizerFast", "max_length": 20,
        "is_decoder": False, "pruned_heads": {}, "temperature": 0.6, "torchscript": False,
        "pad_token_id": -1, "moe_intermediate_size": 11008,
    }  # fmt: skip
    assert model_config_from_hf({**dumped, **extra}) == model_config_from_hf(plain)


def test_end_tokens_come_from_both_files() -> None:
    """generation_config.json may add end tokens; none is lost, none doubled."""
    config = model_config_from_hf(make_config("qwen2"), {"eos_token_id": [1, 7]})
    assert config.eos_token_ids == (1, 7)
