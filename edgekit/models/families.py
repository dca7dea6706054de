"""The families edgekit builds natively, and the registry from ``model_type`` to reader.

They differ in where biases and norms are; everything else is shared:

| family | biases | q/k norm | head_dim |
|---|---|---|---|
| Qwen2 (R1-Distill-Qwen) | q, k, v | no | hidden / heads |
| Llama (R1-Distill-Llama, deepseek-llm, -coder, ...) | by config | no | hidden / heads, or given |
| Qwen3 (R1-0528-Qwen3) | by config | yes | given |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgekit.errors import CheckpointError, UnsupportedModelError
from edgekit.models.config import ModelConfig, count_parameters
from edgekit.models.keys import ConfigReader, anything
from edgekit.models.rope_config import rope_config

MAX_PARAMETERS = 13_000_000_000
"""An AGX Orin 64GB takes models under 13 B parameters at 8 bits with its reserve kept."""

_WINDOW = {"sliding_window": anything}  # only read when use_sliding_window, which must be false


def model_config_from_hf(
    data: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Return the architecture a ``config.json`` describes.

    Args:
        data: Parsed ``config.json``.
        generation: Parsed ``generation_config.json``, which may name more end tokens.

    Raises:
        UnsupportedModelError: Another architecture, an unmodelled key, or 13 B and more.
        CheckpointError: A key is missing or wrong.
    """
    kind = data.get("model_type")
    reader = FAMILIES.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise sparse_error(data) or _unknown(kind)
    config = reader(data, generation or {})
    refuse_parameters(count_parameters(config))
    return config


def refuse_parameters(parameters: int) -> None:
    """Refuse a model that is too large for the machines edgekit builds for.

    Raises:
        UnsupportedModelError: It has 13 B parameters or more.
    """
    if parameters >= MAX_PARAMETERS:
        raise UnsupportedModelError(
            f"the model has {parameters / 1e9:.1f} B parameters; edgekit builds models under 13 B, "
            "which is what an AGX Orin 64GB holds with its memory reserve kept",
            "Use a smaller one, such as deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        )


def _qwen2(data: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    reader = ConfigReader(data, _WINDOW)
    return _finish(reader, data, generation, qkv_bias=True)


def _llama(data: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    reader = ConfigReader(data)
    bias = bool(reader.get("attention_bias", bool, default=False))
    mlp_bias = bool(reader.get("mlp_bias", bool, default=False))
    return _finish(reader, data, generation, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def _qwen3(data: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    reader = ConfigReader(data, _WINDOW)
    bias = bool(reader.get("attention_bias", bool, default=False))
    return _finish(reader, data, generation, qkv_bias=bias, o_bias=bias, qk_norm=True)


FAMILIES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], ModelConfig]] = {
    "qwen2": _qwen2,
    "llama": _llama,
    "qwen3": _qwen3,
}


def _finish(
    reader: ConfigReader,
    data: Mapping[str, Any],
    generation: Mapping[str, Any],
    *,
    qkv_bias: bool,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelConfig:
    """Read what all families share, and refuse what is left."""
    if reader.get("hidden_act", str, default="silu") != "silu":
        raise UnsupportedModelError(
            f"config.json has hidden_act {data['hidden_act']!r}; only silu is modelled",
            "Use a model of the families edgekit builds",
        )
    hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    keys = reader.size("num_key_value_heads", heads)
    context = reader.size("max_position_embeddings")
    head_dim = reader.size("head_dim", max(1, hidden // heads))
    if heads % keys or head_dim % 2 or (data.get("head_dim") is None and hidden % heads):
        raise CheckpointError(
            f"config.json: {heads} heads, {keys} key/value heads and head_dim {head_dim} do not "
            f"divide hidden_size {hidden}"
        )
    config = ModelConfig(
        model_type=str(data["model_type"]),
        hidden_size=hidden,
        intermediate_size=reader.size("intermediate_size"),
        num_hidden_layers=reader.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=head_dim,
        vocab_size=reader.size("vocab_size"),
        max_position_embeddings=context,
        rms_norm_eps=float(reader.need("rms_norm_eps", float)),
        tie_word_embeddings=bool(reader.get("tie_word_embeddings", bool, default=False)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=rope_config(data, context),
        bos_token_id=token_id(data, "bos_token_id"),
        eos_token_ids=end_tokens(data, generation),
        pad_token_id=token_id(data, "pad_token_id"),
    )
    reader.finish()
    return config


def token_id(data: Mapping[str, Any], key: str) -> int | None:
    """Return a special token of ``config.json``, or None.

    Raises:
        CheckpointError: It is not a token id.
    """
    value = data.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise CheckpointError(f"config.json: {key} must be a token id, is {value!r}")
    return value


def end_tokens(data: Mapping[str, Any], generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Return every end token either file names, in order of appearance.

    Raises:
        CheckpointError: One is not a token id.
    """
    found: list[int] = []
    for source in (data, generation):
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if isinstance(token, bool) or not isinstance(token, int):
                raise CheckpointError(f"eos_token_id must hold token ids, has {token!r}")
            if token not in found:
                found.append(token)
    return tuple(found)


_SPARSE = ("n_routed_experts", "num_experts", "num_local_experts")


def sparse_error(data: Mapping[str, Any]) -> UnsupportedModelError | None:
    """Return why a ``config.json`` of a sparse model is refused; None for a dense one."""
    kind = data.get("model_type")
    if kind in {"deepseek_v2", "deepseek_v3", "deepseek_v32"} or data.get("kv_lora_rank"):
        return UnsupportedModelError(
            f"model_type {kind!r} uses multi-head latent attention and mixture of experts, which "
            "edgekit does not build",
            "Use a dense DeepSeek model, such as deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        )
    if any(data.get(key) for key in _SPARSE):
        return UnsupportedModelError(
            f"model_type {kind!r} is a mixture of experts, which edgekit does not build",
            "Use a dense DeepSeek model, such as deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        )
    return None


def _unknown(kind: Any) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json has model_type {kind!r}; edgekit builds {', '.join(FAMILIES)} natively",
        "Build it with --exporter optimum --target cpu, or use a model of these families, such as "
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    )
