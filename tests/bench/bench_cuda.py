"""A bundle on CUDA (onnxruntime-gpu): logits against float64, rates, what CUDA graphs buy.

    python tests/bench/bench_cuda.py check BUNDLE           # logits against float64 on the GPU
    python tests/bench/bench_cuda.py time BUNDLE --contexts 512 2048 4096

Needs torch with CUDA for ``check`` only. Prints one JSON document. Rates include everything a token
costs in the session: inputs to the GPU, the step, logits back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.lazy import read_all
from edgekit.engine.load import load_bundle
from edgekit.graph.exponents import Exponents
from edgekit.models.config import ModelConfig, layer_linears
from edgekit.models.rope import cos_sin_tables
from edgekit.pipeline.stored_tensors import StoredTensors

PROMPT_TOKENS = 96
DECODED_TOKENS = 16
STEPS = 60


def float64_logits(bundle: Bundle, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Return logits [S, V] of the stored weights, all arithmetic in float64 on the GPU."""
    import torch

    manifest = bundle.manifest
    config = ModelConfig.from_dict(dict(manifest.model["config"]))
    exponents = Exponents.from_dict(manifest.f16_exponents)
    entries = {entry.name: entry for entry in manifest.tensors}
    untied = replace(config, tie_word_embeddings=False)
    stored = StoredTensors(bundle.path, entries, untied, exponents)

    def weight(name: str) -> Any:
        return torch.from_numpy(np.asarray(read_all(stored.open(name)))).cuda().double()

    def norm(x: Any, name: str) -> Any:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps) * weight(name)

    tables = cos_sin_tables(config.rope, config.head_dim, np.arange(len(tokens)))
    cos, sin = (torch.from_numpy(t).cuda().double() for t in tables)

    def rotate(x: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = weight("model.embed_tokens.weight")[torch.tensor(tokens).cuda()]
    mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1).cuda().double()
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"

        def linear(index: int, value: Any, layer: int = layer) -> Any:
            spec = layer_linears(config, layer)[index]
            y = value @ weight(spec.weight_key).T
            return y + weight(f"{spec.name}.bias") if spec.bias else y

        def heads(index: int, value: Any, name: str | None, prefix: str = prefix) -> Any:
            y = linear(index, value).view(len(tokens), -1, config.head_dim)
            if name and config.qk_norm:
                y = norm(y, f"{prefix}.self_attn.{name}.weight")
            return y.transpose(0, 1)

        h = norm(x, f"{prefix}.input_layernorm.weight")
        q, k = rotate(heads(0, h, "q_norm")), rotate(heads(1, h, "k_norm"))
        groups = config.num_attention_heads // config.num_key_value_heads
        k = k.repeat_interleave(groups, 0)
        v = heads(2, h, None).repeat_interleave(groups, 0)
        scores = q @ k.transpose(1, 2) * config.head_dim**-0.5 + mask
        a = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(tokens), -1)
        x = x + linear(3, a)
        h = norm(x, f"{prefix}.post_attention_layernorm.weight")
        x = x + linear(6, torch.nn.functional.silu(linear(4, h)) * linear(5, h))
    logits: np.ndarray[Any, Any] = (
        (norm(x, "model.norm.weight") @ weight("lm_head.weight").T).cpu().numpy()
    )
    return logits


def check(path: Path) -> dict[str, Any]:
    """Compare prefill and decode logits, with and without CUDA graphs, with float64."""
    bundle = open_bundle(path)
    vocab = bundle.manifest.model["config"]["vocab_size"]
    total = PROMPT_TOKENS + DECODED_TOKENS
    tokens = np.random.default_rng(0).integers(0, vocab, total).tolist()
    wanted = float64_logits(bundle, tokens)
    report: dict[str, Any] = {"bundle": path.name}
    for name, graph in (("plain", False), ("cuda_graph", True)):
        session = load_bundle(bundle, provider="cuda", max_sequences=4, cuda_graph=graph).session
        got = [session.prefill(1, tokens[:PROMPT_TOKENS], all_logits=True)]
        got += [session.decode([1], [tokens[at]], [at]) for at in range(PROMPT_TOKENS, total)]
        rows = np.concatenate(got).astype(np.float64)
        errors = np.linalg.norm(rows - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        report[f"{name}_prefill_relative_error"] = float(errors[:PROMPT_TOKENS].max())
        report[f"{name}_decode_relative_error"] = float(errors[PROMPT_TOKENS:].max())
        report[f"{name}_top1_agreement"] = float((rows.argmax(1) == wanted.argmax(1)).mean())
        session.close()
    return report


def measure(path: Path, contexts: list[int], batches: list[int]) -> dict[str, Any]:
    """Time decode at each context and batch, with and without CUDA graphs, and prefill."""
    bundle = open_bundle(path)
    weights = sum(e.size_bytes for e in bundle.manifest.tensors if "embed_tokens" not in e.name)
    report: dict[str, Any] = {"bundle": path.name, "streamed_weight_bytes": weights, "rows": []}
    for graph in (False, True):
        start = time.perf_counter()
        session = load_bundle(
            bundle, provider="cuda", max_sequences=max(batches), cuda_graph=graph
        ).session
        report["load_s"] = round(time.perf_counter() - start, 1)
        for context in contexts:
            prompt = np.random.default_rng(1).integers(0, 4000, context - STEPS - 12).tolist()
            started = time.perf_counter()
            for slot in range(max(batches)):
                session.prefill(slot, prompt)
            prefill_s = (time.perf_counter() - started) / max(batches)
            for batch in batches:
                slots = list(range(batch))
                times = []
                for step in range(STEPS):
                    position = len(prompt) + step
                    begin = time.perf_counter()
                    session.decode(slots, [step] * batch, [position] * batch)
                    times.append(time.perf_counter() - begin)
                median = statistics.median(times[10:])
                report["rows"].append(
                    {
                        "cuda_graph": graph,
                        "context_tokens": context,
                        "batch": batch,
                        "decode_step_ms": round(1000 * median, 3),
                        "decode_tokens_per_s": round(batch / median, 1),
                        "weight_stream_gb_per_s": round(weights / median / 1e9, 1),
                        "prefill_tokens_per_s": round(len(prompt) / prefill_s, 1),
                    }
                )
        session.close()
    return report


def main() -> int:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("check", "time"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    if options.what == "check":
        print(json.dumps(check(options.bundle)))
    else:
        print(json.dumps(measure(options.bundle, options.contexts, options.batches)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
