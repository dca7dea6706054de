"""The shapes of the published models: enough to plan one without its files, not to build it.

A shape has no rope and no tokens: those decide what a graph computes, not its size or rate.
"""

from __future__ import annotations

import difflib

from edgekit.errors import CheckpointError
from edgekit.models.config import ModelConfig, count_parameters
from edgekit.models.families import refuse_parameters
from edgekit.models.published import PUBLISHED


def shape_config(
    model_type: str,
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int,
    head_dim: int = 128,
    max_position_embeddings: int = 4096,
) -> ModelConfig:
    """Return a configuration of these sizes; what no size depends on has a placeholder."""
    return ModelConfig(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        qkv_bias=model_type == "qwen2",
        o_bias=False,
        mlp_bias=False,
        qk_norm=model_type == "qwen3",
    )


_Sizes = tuple[int, int, int, int, int, int]
"""hidden_size, intermediate_size, layers, query heads, key/value heads, vocab_size."""

_LLAMA_7B: _Sizes = (4096, 11008, 30, 32, 32, 102400)
_CODER_1B: _Sizes = (2048, 5504, 24, 16, 16, 32256)
_CODER_7B: _Sizes = (4096, 11008, 32, 32, 32, 32256)
_SIZES: dict[str, _Sizes] = {
    "DeepSeek-R1-Distill-Qwen-1.5B": (1536, 8960, 28, 12, 2, 151936),
    "DeepSeek-R1-Distill-Qwen-7B": (3584, 18944, 28, 28, 4, 152064),
    "DeepSeek-R1-Distill-Llama-8B": (4096, 14336, 32, 32, 8, 128256),
    "DeepSeek-R1-0528-Qwen3-8B": (4096, 12288, 36, 32, 8, 151936),
    "deepseek-coder-1.3b-base": _CODER_1B,
    "deepseek-coder-1.3b-instruct": _CODER_1B,
    "deepseek-coder-6.7b-base": _CODER_7B,
    "deepseek-coder-6.7b-instruct": _CODER_7B,
    "deepseek-coder-5.7bmqa-base": (4096, 11008, 32, 32, 1, 32256),
}
"""Those that are not of the shape of deepseek-llm-7b."""

_TOO_LARGE: dict[str, tuple[str, _Sizes]] = {
    "DeepSeek-R1-Distill-Qwen-14B": ("qwen2", (5120, 13824, 48, 40, 8, 152064)),
    "DeepSeek-R1-Distill-Qwen-32B": ("qwen2", (5120, 27648, 64, 40, 8, 152064)),
    "DeepSeek-R1-Distill-Llama-70B": ("llama", (8192, 28672, 80, 64, 8, 128256)),
}
"""Their siblings of 13 B and more, so that their refusal names their size."""


def find_shape(name: str) -> ModelConfig:
    """Return the shape of a published model.

    Args:
        name: Its hub id, with or without the owner.

    Raises:
        CheckpointError: It is not in the table.
        UnsupportedModelError: It has 13 B parameters or more.
    """
    base = name.removeprefix("deepseek-ai/")
    if base in _TOO_LARGE:
        family, sizes = _TOO_LARGE[base]
        refuse_parameters(count_parameters(_config(family, sizes, 4096)))
    for model in PUBLISHED:
        if model.hub_id == f"deepseek-ai/{base}":
            return _config(model.family, _SIZES.get(base, _LLAMA_7B), model.context)
    names = [model.hub_id.partition("/")[2] for model in PUBLISHED]
    near = difflib.get_close_matches(base, names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise CheckpointError(
        f"{name} is neither a folder nor a published model",
        f"{hint}`edgekit recipes` lists the published models; of any other, give a folder with "
        "its config.json",
    )


def _config(family: str, sizes: _Sizes, context: int) -> ModelConfig:
    hidden, inter, layers, heads, keys, vocab = sizes
    return shape_config(
        family,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        vocab_size=vocab,
        max_position_embeddings=context,
    )
