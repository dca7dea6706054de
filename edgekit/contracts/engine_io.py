"""Binding names and shapes between a graph and the sessions that run it.

``graph/`` emits exactly these and every runtime binds exactly these. Dimensions: B sequences,
S new tokens, L attended cache width (L <= C), C cache capacity, K wanted positions,
Hkv key/value heads, D head dim, V vocabulary.

| input | dtype, shape | meaning |
|---|---|---|
| ``input_ids`` | int64 [B, S] | |
| ``position_ids`` | int64 [B, S] | rotary positions |
| ``attention_mask`` | bool [B, 1, S, L] | True: attend; its width bounds the work |
| ``write_index`` | int64 [B] | where each sequence's new keys go; ``write_index + S <= C`` |
| ``logits_index`` | int64 [B, K, 1] | positions in [0, S) whose logits are wanted |
| ``past_key_i``, ``past_value_i`` | activation dtype [B, Hkv, C, D] | the cache |

Outputs: ``logits`` [B, K, V] in the activation dtype; ``present_key_i``, ``present_value_i``
[B, Hkv, C, D], bound to the same memory as the inputs so that the update is in place.
In ONNX Runtime L == C: sessions keep caches in tiers of capacity instead of slicing, since a
Slice of the cache is a copy there.

The ``trt103`` dialect has no in-place outputs: instead of ``present_*`` it returns the new rows
``new_key_i``, ``new_value_i`` [B, Hkv, S, D], which the runtime copies into the cache at
``write_index`` after the step. Its mask is C wide.

The ``ort`` dialect attends by ONNX Runtime's ``GroupQueryAttention``, which is causal by itself and
counts rotary positions from what a sequence holds. Instead of ``position_ids``, ``attention_mask``
and ``write_index`` it reads

| input | dtype, shape | meaning |
|---|---|---|
| ``seqlens_k`` | int32 [B] | tokens of each sequence with the new ones, less one |
| ``total_sequence_length`` | int32 [1], on the CPU | at least their largest plus one, at most C |

New rows stand at ``seqlens_k + 1 - S`` onward. With S > 1, B is 1 unless every sequence begins at
0, and ``total_sequence_length`` is exact.
"""

from __future__ import annotations

INPUT_IDS = "input_ids"
POSITION_IDS = "position_ids"
ATTENTION_MASK = "attention_mask"
WRITE_INDEX = "write_index"
LOGITS_INDEX = "logits_index"
LOGITS = "logits"
SEQLENS_K = "seqlens_k"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"


def past_key(layer: int) -> str:
    """Return the name of a layer's key cache input."""
    return f"past_key_{layer}"


def past_value(layer: int) -> str:
    """Return the name of a layer's value cache input."""
    return f"past_value_{layer}"


def present_key(layer: int) -> str:
    """Return the name of a layer's key cache output."""
    return f"present_key_{layer}"


def present_value(layer: int) -> str:
    """Return the name of a layer's value cache output."""
    return f"present_value_{layer}"


def new_key(layer: int) -> str:
    """Return the name of a layer's new key rows (dialect ``trt103``)."""
    return f"new_key_{layer}"


def new_value(layer: int) -> str:
    """Return the name of a layer's new value rows (dialect ``trt103``)."""
    return f"new_value_{layer}"
