"""Write a checkpoint of a published model's shape with random weights, on the spot.

For speed and memory figures only: the weights are normal with standard deviation 0.02, so a
quantizer meets a realistic range, but the model says nothing. Memory stays near 50 MiB whatever
the size: tensors are written chunk by chunk from one pool of random numbers, each chunk from
another place and with other signs, so that no two tensors are equal.

    python tests/bench/make_checkpoint.py qwen2-0.5b /tmp/qwen2-0.5b
    python tests/bench/make_checkpoint.py qwen2-7b /tmp/seven --layers 2   # truncated, to try it

The tokenizer is copied from ``--tokenizer`` (default: the demonstration checkpoint), whose
vocabulary is smaller than the model's: the ids above it are never produced by text, and have none.
``--name-tokens`` gives each a name, so that a server has something to stream.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edgekit.models.config import ModelConfig, count_parameters, tensor_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
TOKENIZER = REPOSITORY / "examples" / "edgekit-r1-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
STANDARD_DEVIATION = 0.02
POOL_SIZE = 1 << 22
CHUNK_SIZE = 1 << 20
BF16_ONE = 0x3F80
BF16_SIGN = 0x8000
MAX_SHARD_BYTES = 4_000_000_000

Bf16Array = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Shape:
    """What ``config.json`` needs beyond :class:`ModelConfig`, and the architecture."""

    architecture: str
    model: ModelConfig
    rope_theta: float
    rope_scaling: dict[str, Any] | None = None

    def config_json(self) -> dict[str, Any]:
        """Return ``config.json`` in the layout DeepSeek publishes (top-level ``rope_theta``)."""
        model = self.model
        names = (
            "model_type hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "num_key_value_heads vocab_size max_position_embeddings rms_norm_eps "
            "tie_word_embeddings"
        )
        config: dict[str, Any] = {"architectures": [self.architecture]}
        config |= {name: getattr(model, name) for name in names.split()}
        config |= {
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "hidden_act": "silu",
            "initializer_range": STANDARD_DEVIATION,
            "rope_theta": self.rope_theta,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }
        if model.model_type == "qwen2":
            config |= {"use_sliding_window": False, "sliding_window": None}
        else:
            config |= {"attention_bias": False, "mlp_bias": False}
            config |= {"rope_scaling": self.rope_scaling}
        return config


def _qwen2(
    hidden: int, inter: int, layers: int, heads: int, kv_heads: int, vocab: int, **other: Any
) -> ModelConfig:
    return ModelConfig(
        model_type="qwen2",
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position_embeddings=other.get("context", 131072),
        rms_norm_eps=1e-6,
        tie_word_embeddings=other.get("tied", False),
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        qk_norm=False,
    )


_LLAMA_8B = replace(
    _qwen2(4096, 14336, 32, 32, 8, 128256), model_type="llama", rms_norm_eps=1e-5, qkv_bias=False
)
_LLAMA3_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

# The published config.json of Qwen/Qwen2-0.5B and deepseek-ai/DeepSeek-R1-Distill-*.
SHAPES = {
    "qwen2-0.5b": Shape(
        "Qwen2ForCausalLM",
        _qwen2(896, 4864, 24, 14, 2, 151936, tied=True, context=32768),
        rope_theta=1e6,
    ),
    "qwen2-1.5b-distill": Shape(
        "Qwen2ForCausalLM", _qwen2(1536, 8960, 28, 12, 2, 151936), rope_theta=1e4
    ),
    "qwen2-7b": Shape("Qwen2ForCausalLM", _qwen2(3584, 18944, 28, 28, 4, 152064), rope_theta=1e4),
    "llama-8b": Shape("LlamaForCausalLM", _LLAMA_8B, rope_theta=5e5, rope_scaling=_LLAMA3_SCALING),
}


class RandomWeights:
    """Endless bf16 normals of standard deviation 0.02 out of one bounded pool."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        normals = self._random.standard_normal(POOL_SIZE, np.float32)
        normals *= np.float32(STANDARD_DEVIATION)
        self._pool = (normals.view(np.uint32) >> 16).astype(np.uint16)
        self._signs = (self._pool << 15) & np.uint16(BF16_SIGN)

    def chunks(self, name: str, shape: tuple[int, ...]) -> Iterator[Bf16Array]:
        """Yield the elements of one tensor, at most :data:`CHUNK_SIZE` at a time."""
        size = int(np.prod(shape))
        if name.endswith("norm.weight"):
            yield np.full(size, BF16_ONE, np.uint16)
            return
        for start in range(0, size, CHUNK_SIZE):
            count = min(CHUNK_SIZE, size - start)
            value, sign = self._random.integers(0, POOL_SIZE - count, 2)
            chunk = self._pool[value : value + count].copy()
            chunk ^= self._signs[sign : sign + count]
            yield chunk


def plan_shards(
    shapes: dict[str, tuple[int, ...]], max_shard_bytes: int
) -> list[dict[str, tuple[int, ...]]]:
    """Split tensors, in order, into shards of at most ``max_shard_bytes`` where possible."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if shards[-1] and used + size > max_shard_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], weights: RandomWeights) -> int:
    """Write one safetensors file; returns its tensors' bytes.

    Layout: u64 little-endian header length, JSON header padded with spaces to 8, data
    (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for chunk in weights.chunks(name, shape):
                _write_all(file, chunk)
    return offset


def _write_all(file: BinaryIO, chunk: Bf16Array) -> None:
    # A raw write may be short when the disk fills up: the next one then raises.
    view = chunk.astype("<u2", copy=False).data.cast("B")
    while view:
        view = view[file.write(view) :]


def make_checkpoint(
    shape: Shape,
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: Path = TOKENIZER,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write the checkpoint into ``folder`` (made if missing); returns bytes of all tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(shape.config_json(), indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    shards = plan_shards(tensor_shapes(shape.model), max_shard_bytes)
    weights = RandomWeights(seed)
    total = 0
    index: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(folder / name, tensors, weights)
        index |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        document = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document, indent=2) + "\n")
    return total


def name_tokens(path: Path, vocab_size: int) -> None:
    """Give every id of a ``tokenizer.json`` that has no text a name of its own."""
    tokenizer = json.loads(path.read_text())
    words: dict[str, int] = tokenizer["model"]["vocab"]
    known = {*words.values(), *(added["id"] for added in tokenizer["added_tokens"])}
    words |= {f"[{token}]": token for token in range(vocab_size) if token not in known}
    path.write_text(json.dumps(tokenizer))


def main() -> int:
    """Write one checkpoint as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="only the first layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--name-tokens", action="store_true")
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.layers:
        shape = replace(shape, model=replace(shape.model, num_hidden_layers=options.layers))
    start = time.perf_counter()
    total = make_checkpoint(
        shape,
        options.folder,
        seed=options.seed,
        tokenizer=options.tokenizer,
        max_shard_bytes=options.max_shard_bytes,
    )
    if options.name_tokens:
        name_tokens(options.folder / "tokenizer.json", shape.model.vocab_size)
    print(
        f"{options.folder}: {count_parameters(shape.model) / 1e6:.0f} M parameters, "
        f"{total / 1e6:.0f} MB in {time.perf_counter() - start:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
