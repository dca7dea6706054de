"""The architecture of a dense decoder, in the words of Hugging Face's ``config.json``.

One frozen dataclass serves every family: the families (``qwen2.py``, ``llama.py``,
``qwen3.py``) differ in how they fill it, not in what the graph builder reads from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding parameters, as in ``rope_parameters`` / ``rope_scaling``.

    ``attention_factor`` multiplies cos and sin (YaRN's mscale, already resolved to a
    number; 1.0 when the type has none).
    """

    rope_type: RopeType = "default"
    rope_theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None  # llama3
    high_freq_factor: float | None = None  # llama3
    beta_fast: float | None = None  # yarn
    beta_slow: float | None = None  # yarn
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the graph builder, the reference and the planner need to know of a model."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig = field(default_factory=RopeConfig)
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping that :meth:`from_dict` reads back."""
        data = asdict(self)
        data["eos_token_ids"] = list(self.eos_token_ids)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Read what :meth:`to_dict` wrote (a bundle's manifest, not a ``config.json``)."""
        values = dict(data)
        values["rope"] = RopeConfig(**values["rope"])
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear of the decoder.

    ``name`` is the checkpoint's module name (``model.layers.0.self_attn.q_proj``,
    ``lm_head``); its weight is ``<weight_key>`` [out_features, in_features].
    """

    name: str
    in_features: int
    out_features: int
    bias: bool
    weight_key: str


def layer_linears(config: ModelConfig, layer: int) -> tuple[Linear, ...]:
    """Return the seven linears of one decoder layer, in execution order."""
    prefix = f"model.layers.{layer}"
    hidden, inter = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = (
        ("self_attn.q_proj", hidden, queries, config.qkv_bias),
        ("self_attn.k_proj", hidden, keys, config.qkv_bias),
        ("self_attn.v_proj", hidden, keys, config.qkv_bias),
        ("self_attn.o_proj", queries, hidden, config.o_bias),
        ("mlp.gate_proj", hidden, inter, config.mlp_bias),
        ("mlp.up_proj", hidden, inter, config.mlp_bias),
        ("mlp.down_proj", inter, hidden, config.mlp_bias),
    )
    return tuple(
        Linear(f"{prefix}.{name}", k, n, bias, f"{prefix}.{name}.weight")
        for name, k, n, bias in shapes
    )


def lm_head(config: ModelConfig) -> Linear:
    """Return the LM head; with tied embeddings it reads the embedding's tensor."""
    key = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return Linear("lm_head", config.hidden_size, config.vocab_size, False, key)


def all_linears(config: ModelConfig) -> tuple[Linear, ...]:
    """Return every linear of the model, layer by layer, the LM head last."""
    layers = range(config.num_hidden_layers)
    return (*tuple(x for i in layers for x in layer_linears(config, i)), lm_head(config))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor a complete checkpoint holds."""
    hidden, dim = config.hidden_size, config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if config.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (dim,)
    for linear in all_linears(config):
        shapes[linear.weight_key] = (linear.out_features, linear.in_features)
        if linear.bias:
            shapes[f"{linear.name}.bias"] = (linear.out_features,)
    return shapes


def count_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of a complete checkpoint."""
    total = 0
    for shape in tensor_shapes(config).values():
        size = 1
        for dim in shape:
            size *= dim
        total += size
    return total
