"""Writing an architecture as the ``config.json`` that Hugging Face's readers take.

The inverse of ``families.model_config_from_hf``: a test holds them to each other.
"""

from __future__ import annotations

from typing import Any

from edgekit.models.config import ModelConfig, RopeConfig


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Return ``config.json`` of an architecture, in the layout that published checkpoints have.

    The rope section is the older one (``rope_theta`` and ``rope_scaling``), which every reader
    takes, and YaRN's attention factor is the resolved one.
    """
    eos = list(config.eos_token_ids)
    values: dict[str, Any] = {
        "architectures": [f"{config.model_type.capitalize()}ForCausalLM"],
        "model_type": config.model_type,
        "hidden_act": "silu",
        "dtype": "float16",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_token_id,
        "rope_theta": config.rope.rope_theta,
    }
    if config.model_type != "qwen2":  # whose biases are fixed
        values["attention_bias"] = config.qkv_bias
    if config.model_type == "llama":
        values["mlp_bias"] = config.mlp_bias
    scaling = _rope_scaling(config.rope)
    return {**values, "rope_scaling": scaling} if scaling else values


def _rope_scaling(rope: RopeConfig) -> dict[str, Any]:
    """Return ``rope_scaling``; empty for the default type."""
    if rope.rope_type == "default":
        return {}
    known = {
        "rope_type": rope.rope_type,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "attention_factor": rope.attention_factor if rope.rope_type == "yarn" else None,
    }
    return {key: value for key, value in known.items() if value is not None}
