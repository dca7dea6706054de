"""A decoder in float64 NumPy whose every value is rounded as an engine's activation type rounds it.

It rounds where a graph has a value between two operators (norms and softmax compute inside one) and
adds up in float64, so what is left is the error of the type itself. With no rounding it is an
oracle more exact than float32. It is short, not fast, and shares nothing with edgekit's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.models.config import ModelConfig
from edgekit.models.rope import cos_sin_tables

Array = np.ndarray[Any, Any]
Rounding = Callable[[Array], Array]


def exact(x: Array) -> Array:
    """Round nothing."""
    return x


def to_float16(x: Array) -> Array:
    """Round to float16, half to even; overflow is infinity."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float64)


def to_bfloat16(x: Array) -> Array:
    """Round to bfloat16, half to even, by way of float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return kept.astype(np.uint32).view(np.float32).astype(np.float64)


class RoundedDecoder:
    """A dense decoder over whole sequences.

    Args:
        config: The architecture.
        weights: Opens a tensor, float [shape], by its checkpoint key.
        rounding: Of every activation, and of the rotary tables.
        weight_rounding: Of every weight; as ``rounding`` by default.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Callable[[str], Array],
        rounding: Rounding = exact,
        weight_rounding: Rounding | None = None,
    ) -> None:
        self.config = config
        self._open = weights
        self._round = rounding
        self._round_weight = weight_rounding or rounding

    def logits(self, ids: Array) -> Array:
        """Return float64 [S, vocab_size] of int64 [S]."""
        config, r = self.config, self._round
        tables = cos_sin_tables(config.rope, config.head_dim, np.arange(ids.size))
        cos, sin = (r(np.asarray(table, np.float64))[:, None] for table in tables)
        rope = cos, sin
        x = r(self._weight("model.embed_tokens.weight")[ids])
        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}"
            x = r(x + self._attention(name, self._norm(f"{name}.input_layernorm", x), rope))
            x = r(x + self._mlp(name, self._norm(f"{name}.post_attention_layernorm", x)))
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        return self._linear(head, self._norm("model.norm", x))

    def _attention(self, name: str, x: Array, rope: tuple[Array, Array]) -> Array:
        config, r = self.config, self._round
        q, k, v = (self._heads(f"{name}.self_attn.{kind}", x) for kind in "qkv")
        group = config.num_attention_heads // config.num_key_value_heads
        q, k = (_rotate(part, *rope, r) for part in (q, k))
        k, v = (np.repeat(part, group, axis=1).transpose(1, 0, 2) for part in (k, v))
        scores = r(q.transpose(1, 0, 2) @ k.transpose(0, 2, 1) * config.head_dim**-0.5)
        scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        average = r(r(weights / weights.sum(-1, keepdims=True)) @ v)
        return self._linear(f"{name}.self_attn.o_proj", average.swapaxes(0, 1).reshape(len(x), -1))

    def _mlp(self, name: str, x: Array) -> Array:
        r = self._round
        gate, up = (self._linear(f"{name}.mlp.{kind}_proj", x) for kind in ("gate", "up"))
        with np.errstate(over="ignore"):
            activated = r(gate * r(1 / (1 + np.exp(-gate))))
        return self._linear(f"{name}.mlp.down_proj", r(activated * up))

    def _heads(self, name: str, x: Array) -> Array:
        y = self._linear(f"{name}_proj", x).reshape(len(x), -1, self.config.head_dim)
        if self.config.qk_norm and name[-1] in "qk":
            y = self._norm(f"{name}_norm", y)
        return y

    def _linear(self, name: str, x: Array) -> Array:
        y = self._round(x @ self._weight(f"{name}.weight").T)
        kind, config = name.rsplit(".", 1)[-1], self.config
        biased = {
            "o_proj": config.o_bias,
            **dict.fromkeys(("q_proj", "k_proj", "v_proj"), config.qkv_bias),
        }
        biased |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), config.mlp_bias)
        return self._round(y + self._weight(f"{name}.bias")) if biased.get(kind) else y

    def _norm(self, name: str, x: Array) -> Array:
        mean = np.square(x).mean(-1, keepdims=True)
        unit = self._round(x / np.sqrt(mean + self.config.rms_norm_eps))
        return self._round(unit * self._weight(f"{name}.weight"))

    def _weight(self, key: str) -> Array:
        return self._round_weight(np.asarray(self._open(key), np.float64))


def _rotate(x: Array, cos: Array, sin: Array, r: Rounding) -> Array:
    """Rotate [S, heads, head_dim], halves paired."""
    first, second = np.split(x, 2, axis=-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return r(np.concatenate(turned, axis=-1))
