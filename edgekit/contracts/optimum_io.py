"""Binding names of a graph that Optimum exports (``text-generation-with-past``).

Dimensions: B sequences, S new tokens, P tokens in the cache, Hkv key/value heads, D head dim,
V vocabulary. The cache grows by concatenation: P + S comes out where P went in.

| input | dtype, shape | meaning |
|---|---|---|
| ``input_ids`` | int64 [B, S] | |
| ``attention_mask`` | int64 [B, P + S] | 1: attend |
| ``position_ids`` | int64 [B, S] | not every family has it |
| ``past_key_values.i.key``, ``.value`` | float32 [B, Hkv, P, D] | P may be 0 |

Outputs: ``logits`` float32 [B, S, V], of every new token; ``present.i.key`` and ``present.i.value``
float32 [B, Hkv, P + S, D].
"""

from __future__ import annotations

DIALECT = "optimum"
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
LOGITS = "logits"


def past_names(layer: int) -> tuple[str, str]:
    """Return the names of a layer's key and value inputs."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the names of a layer's key and value outputs."""
    return f"present.{layer}.key", f"present.{layer}.value"
