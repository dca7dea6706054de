"""What a decode step reads and what a token computes, counted from a model's shapes."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.models.config import ModelConfig, all_linears, lm_head
from edgekit.plan.memory import vector_bytes


@dataclass(frozen=True, slots=True)
class Workload:
    """A quantized model as the roofline sees it.

    Attributes:
        layers: Decoder layers.
        linear_weights: Weights of the layers' linears.
        head_weights: Weights of the LM head.
        weight_bytes: What every step reads once: linears and head as stored, norms, biases.
        row_bytes: One embedding row, float16: read for each sequence of the batch.
        cache_bytes_per_token: float16 keys and values of all layers.
        attention_flops: Of one query token with one token of the cache.
    """

    layers: int
    linear_weights: int
    head_weights: int
    weight_bytes: float
    row_bytes: int
    cache_bytes_per_token: int
    attention_flops: int

    def decode_bytes(self, batch: int, context: int) -> float:
        """Return the bytes a decode step moves."""
        each = self.row_bytes + context * self.cache_bytes_per_token
        return self.weight_bytes + batch * each

    def decode_flops(self, batch: int, context: int) -> float:
        """Return the floating-point operations of a decode step."""
        weights = self.linear_weights + self.head_weights
        return batch * (2 * weights + context * self.attention_flops)

    def prefill_flops(self, tokens: int) -> float:
        """Return those of a prompt: causal attention, logits of the last token."""
        causal = tokens * tokens / 2 * self.attention_flops
        return 2.0 * self.linear_weights * tokens + causal + 2.0 * self.head_weights


def workload(config: ModelConfig, linear_bytes: float) -> Workload:
    """Return the workload of a model.

    Args:
        config: Its architecture.
        linear_bytes: Stored bytes of its linears, head and scales included.
    """
    head = lm_head(config)
    heads = head.in_features * head.out_features
    every = sum(x.in_features * x.out_features for x in all_linears(config))
    keys = config.num_key_value_heads * config.head_dim
    queries = config.num_attention_heads * config.head_dim
    return Workload(
        layers=config.num_hidden_layers,
        linear_weights=every - heads,
        head_weights=heads,
        weight_bytes=linear_bytes + vector_bytes(config),
        row_bytes=2 * config.hidden_size,
        cache_bytes_per_token=2 * 2 * config.num_hidden_layers * keys,
        attention_flops=2 * 2 * config.num_hidden_layers * queries,
    )


def uniform_workload(config: ModelConfig, linear_bits: float, head_bits: float) -> Workload:
    """Return the workload of a model whose linears all take ``linear_bits`` a weight."""
    bare = workload(config, 0.0)
    stored = (bare.linear_weights * linear_bits + bare.head_weights * head_bits) / 8
    return workload(config, stored)
