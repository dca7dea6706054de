"""Tiny random checkpoints, written to disk with NumPy alone."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.models.config import tensor_shapes
from edgekit.models.families import model_config_from_hf

EXAMPLE = Path(__file__).parent.parent / "examples" / "edgekit-r1-tiny"
Array = np.ndarray[Any, Any]


def to_bf16(values: Array) -> Array:
    """Round float32 to bf16 bits, half to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    result: Array = (rounded >> 16).astype(np.uint16)
    return result


def write_safetensors(
    path: Path,
    tensors: dict[str, Array],
    dtype: str = "bf16",
    kinds: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file; float arrays are stored as ``dtype``, others as they are.

    ``kinds`` gives a tensor another stored type of its size (uint8 bytes as ``F8_E4M3``).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, offset = [], 0
    names = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
    casts: dict[str, Callable[[Any], Any]] = {
        "bf16": to_bf16,
        "f16": lambda a: a.astype(np.float16),
        "f32": np.asarray,
    }
    other = {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64"}
    for name, array in tensors.items():
        if array.dtype == np.float32:
            data, kind = casts[dtype](array).tobytes(), names[dtype]
        else:
            data, kind = array.tobytes(), (kinds or {}).get(name) or other[str(array.dtype)]
        end = offset + len(data)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [offset, end]}
        chunks.append(data)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def make_config(
    family: str = "qwen2",
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    intermediate: int = 128,
    vocab: int = 128,
    layout: str = "rope_parameters",
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a ``config.json`` mapping in either layout."""
    name = {"qwen2": "Qwen2", "llama": "Llama", "qwen3": "Qwen3"}[family]
    config: dict[str, Any] = {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    scaling = dict(rope or {"rope_type": "default"})
    theta = scaling.pop("rope_theta", 10000.0)
    if layout == "rope_parameters":
        config["rope_parameters"] = {"rope_theta": theta, **scaling}
    else:
        config["rope_theta"] = theta
        if scaling["rope_type"] != "default":
            config["rope_scaling"] = scaling
    return {**config, **more}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """Return random float32 weights of an architecture: norms near 1, the rest near 0."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(model_config_from_hf(config)).items():
        values = rng.standard_normal(shape).astype(np.float32)
        tensors[name] = 1 + 0.1 * values if name.endswith("norm.weight") else values * 0.08
    return tensors


def write_checkpoint(
    path: Path,
    *,
    family: str = "qwen2",
    dtype: str = "bf16",
    shards: int = 1,
    seed: int = 0,
    tokenizer: bool = True,
    tensors: dict[str, Array] | None = None,
    kinds: dict[str, str] | None = None,
    **config_options: Any,
) -> Path:
    """Write a random checkpoint; with ``tokenizer`` it gets the example's, and its vocabulary."""
    if tokenizer:
        config_options.setdefault("vocab", 4096)
    config = make_config(family, **config_options)
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    values = random_tensors(config, seed) if tensors is None else tensors
    names = sorted(values)
    if shards == 1:
        write_safetensors(path / "model.safetensors", values, dtype, kinds)
    else:
        weight_map = {}
        for index in range(shards):
            shard = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: values[name] for name in names[index::shards]}
            write_safetensors(path / shard, part, dtype, kinds)
            weight_map.update(dict.fromkeys(part, shard))
        index_file = path / "model.safetensors.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, path / name)
    return path
