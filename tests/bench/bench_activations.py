"""What float16 and bfloat16 activations cost against float64, on a bundle's weights.

Nothing but rounding differs: every model computes in float64 NumPy, and each value between two
operators is rounded to the type (rounded_decoder.py). ``weights`` says whether the weights keep the
bundle's exact values or are rounded to the type too, as an engine's DequantizeLinear does.

    edgekit build examples/edgekit-r1-tiny --target orin --out /tmp/tiny.bundle
    python tests/bench/bench_activations.py /tmp/tiny.bundle --text tests/data/shakespeare_dev.txt

``--scores`` measures instead what large attention scores cost in float16: random two-layer models
whose biases add an offset to every score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from divergence import compare, log_softmax
from rounded_decoder import RoundedDecoder, Rounding, exact, to_bfloat16, to_float16

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.lazy import read_all
from edgekit.graph.exponents import Exponents
from edgekit.models.config import ModelConfig, tensor_shapes
from edgekit.models.families import model_config_from_hf
from edgekit.pipeline.stored_tensors import StoredTensors
from edgekit.text.tokenizer import Tokenizer

Array = np.ndarray[Any, Any]
TYPES: dict[str, Rounding] = {"float16": to_float16, "bfloat16": to_bfloat16}
OFFSETS = (0, 128, 512, 1024, 4096)
SEEDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a window")
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.scores:
        rows = score_rows()
    elif options.bundle and options.text:
        bundle = open_bundle(options.bundle)
        tokenizer = Tokenizer.from_folder(options.bundle / "tokenizer")
        ids = np.array(tokenizer.encode(options.text.read_text("utf-8")), np.int64)
        wanted = options.windows * options.tokens
        rows = type_rows(bundle, ids[:wanted].reshape(options.windows, options.tokens))
    else:
        parser.error("give a bundle and --text, or --scores")
    for row in rows:
        sys.stdout.write("  ".join(f"{key} {_shown(value)}" for key, value in row.items()) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def type_rows(bundle: Bundle, windows: Array) -> list[dict[str, Any]]:
    """Return the error of each type over windows [count, tokens]."""
    config = ModelConfig.from_dict(dict(bundle.manifest.model["config"]))
    config = replace(config, tie_word_embeddings=False)  # the stored head is a weight of its own
    entries = {entry.name: entry for entry in bundle.manifest.tensors}
    exponents = Exponents.from_dict(bundle.manifest.f16_exponents)
    stored = StoredTensors(bundle.path, entries, config, exponents)
    weights = {key: read_all(stored.open(key)) for key in tensor_shapes(config)}

    def logits(rounding: Rounding, weight_rounding: Rounding) -> Array:
        decoder = RoundedDecoder(config, weights.__getitem__, rounding, weight_rounding)
        return np.stack([decoder.logits(ids) for ids in windows])

    wanted = logits(exact, exact)
    rows = []
    for name, rounding in TYPES.items():
        for what, weight_rounding in (("exact", exact), ("rounded", rounding)):
            found = logits(rounding, weight_rounding)
            rmse = float(np.sqrt(np.square(found - wanted).mean()))
            errors = {"logit_rmse": rmse, **asdict(compare(wanted, found, windows))}
            rows.append({"activations": name, "weights": what, **errors})
    return rows


def score_rows() -> list[dict[str, Any]]:
    """Return the mean error of random models by what is added to every score."""
    rows = []
    for offset in OFFSETS:
        pairs = [[log_softmax(x) for x in _wide(seed, offset)] for seed in range(SEEDS)]
        divergence = np.mean([(np.exp(p) * (p - q)).sum(-1).mean() for p, q in pairs])
        rows.append({"offset": offset, "kl_divergence_nats": float(divergence)})
    return rows


def _wide(seed: int, offset: float) -> tuple[Array, Array]:
    """Return logits in float64 and in float16 of a model with ``offset`` in every score."""
    config = model_config_from_hf({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    })  # fmt: skip
    rng = np.random.default_rng(seed)
    gains = {"q_proj": 1.5, "k_proj": 1.5, "o_proj": 4.0, "lm_head": 3.0}
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        module, kind = name.rsplit(".", 2)[-2:]
        gain = 0.08 * (gains.get(module, 1.0) if kind == "weight" else 1.0)
        weights[name] = 1 + 0.1 * values if name.endswith("norm.weight") else gain * values
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            # The last pair of a head's 16 dimensions hardly turns; scores are divided by 4.
            weights[name].reshape(-1, 16)[:, -1] = np.sqrt(4 * offset)
    ids = rng.integers(0, config.vocab_size, 80)
    open_weight: Callable[[str], Array] = weights.__getitem__
    return (
        RoundedDecoder(config, open_weight).logits(ids),
        RoundedDecoder(config, open_weight, to_float16).logits(ids),
    )


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
