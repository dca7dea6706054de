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
from edgekit.models.keys import Check, ConfigReader, anything, exactly
from edgekit.models.rope_config import rope_config

MAX_PARAMETERS = 13_000_000_000
"""An AGX Orin 64GB takes models under 13 B parameters at 8 bits with its reserve kept."""

MAX_LAYERS = 1024
MAX_VOCAB = 2**24
MIN_EPSILON = 1e-12
"""Below it, the epsilon of RMSNorm vanishes in float32 beside any activation."""

_WINDOW: dict[str, Check] = {
    "sliding_window": anything,  # only read when use_sliding_window, which must be false
}
_QWEN2: dict[str, Check] = {
    **_WINDOW,  # its biases are fixed: these keys are dumped, and never read
    "attention_bias": exactly(None, False),
    "mlp_bias": exactly(None, False),
}
_QWEN3: dict[str, Check] = {**_WINDOW, "mlp_bias": exactly(None, False)}


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
    refusal = sparse_error(data)
    if reader is None:
        raise refusal or _unknown(kind)
    _check_architectures(data, str(kind))
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
    reader = ConfigReader(data, _QWEN2)
    return _finish(reader, data, generation, qkv_bias=True)


def _llama(data: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    reader = ConfigReader(data)
    bias = bool(reader.get("attention_bias", bool, default=False))
    mlp_bias = bool(reader.get("mlp_bias", bool, default=False))
    return _finish(reader, data, generation, qkv_bias=bias, o_bias=bias, mlp_bias=mlp_bias)


def _qwen3(data: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    reader = ConfigReader(data, _QWEN3)
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
    vocab = reader.size("vocab_size")
    config = ModelConfig(
        model_type=str(data["model_type"]),
        hidden_size=hidden,
        intermediate_size=reader.size("intermediate_size"),
        num_hidden_layers=reader.size("num_hidden_layers", most=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=context,
        rms_norm_eps=_epsilon(reader),
        tie_word_embeddings=bool(reader.get("tie_word_embeddings", bool, default=False)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        rope=rope_config(data, context),
        bos_token_id=token_id(data, "bos_token_id", vocab),
        eos_token_ids=end_tokens(data, generation, vocab),
        pad_token_id=None
        if data.get("pad_token_id") == -1
        else token_id(data, "pad_token_id", vocab),
    )
    reader.finish()
    return config


def _epsilon(reader: ConfigReader) -> float:
    """Return RMSNorm's epsilon: at 0 a row of zeros divides by zero, at 1 it drowns the weights."""
    value = float(reader.need("rms_norm_eps", float))
    if not MIN_EPSILON <= value < 1:
        raise CheckpointError(
            f"config.json: rms_norm_eps is {value!r}, outside {MIN_EPSILON:g} to 1",
            "Restore the published value, 1e-06 or 1e-05",
        )
    return value


def _check_architectures(data: Mapping[str, Any], kind: str) -> None:
    """Refuse a ``model_type`` that the class names of the same file contradict.

    Raises:
        UnsupportedModelError: A class of another family, or another head than a language model's.
        CheckpointError: Not a list of names.
    """
    names = data.get("architectures")
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"config.json: architectures must be a list of names, is {names!r:.60}"
        )
    for name in names:
        if name != f"{kind.capitalize()}ForCausalLM":
            raise UnsupportedModelError(
                f"config.json has architectures {name!r} and model_type {kind!r}, which are not "
                "one model",
                "Restore the config.json of the model's own repository",
            )


def token_id(data: Mapping[str, Any], key: str, vocab_size: int = MAX_VOCAB) -> int | None:
    """Return a special token of ``config.json``, or None.

    Raises:
        CheckpointError: It is not a token id below ``vocab_size``.
    """
    value = data.get(key)
    return None if value is None else _checked_token(key, value, vocab_size)


def _checked_token(key: str, value: Any, vocab_size: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise CheckpointError(
            f"config.json: {key} must be a token id below {vocab_size}, is {value!r:.60}",
            "Restore the model's own config.json and generation_config.json",
        )
    return value


def end_tokens(
    data: Mapping[str, Any], generation: Mapping[str, Any], vocab_size: int = MAX_VOCAB
) -> tuple[int, ...]:
    """Return every end token either file names, in order of appearance.

    Raises:
        CheckpointError: One is not a token id below ``vocab_size``.
    """
    found: list[int] = []
    for source in (data, generation):
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if _checked_token("eos_token_id", token, vocab_size) not in found:
                found.append(token)
    return tuple(found)


_SPARSE = ("n_routed_experts", "num_experts", "num_local_experts")


def sparse_error(data: Mapping[str, Any]) -> UnsupportedModelError | None:
    """Return why a ``config.json`` of a sparse model is refused; None for a dense one."""
    kind = str(data.get("model_type"))
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
