"""Decode rates of a peer on CUDA, beside bench_cuda.py: the same contexts, batches and steps.

    python tests/bench/cuda_peers.py transformers CHECKPOINT --contexts 512 4096
    python tests/bench/cuda_peers.py genai FOLDER            # made by its builder, -e cuda

Runs in the peer's own environment: it imports nothing of edgekit. Prints one JSON document a row.
transformers runs the bf16 checkpoint with its static cache, once eager and once under
``torch.compile(mode="reduce-overhead")``, which captures CUDA graphs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STEPS = 60
WARMUP_STEPS = 10

Ids = npt.NDArray[np.int64]


def time_steps(step: Callable[[], object]) -> float:
    """Return the median seconds of a step; the first ones are not counted."""
    times = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARMUP_STEPS:])


def row(variant: str, ids: Ids, prefill_s: float, step_s: float) -> dict[str, Any]:
    """Return one row, its context what is in the cache after the steps."""
    batch, prompt = ids.shape
    return {
        "variant": variant,
        "context_tokens": prompt + STEPS + 12,
        "batch": batch,
        "decode_step_ms": round(1000 * step_s, 3),
        "decode_tokens_per_s": round(batch / step_s, 1),
        "prefill_tokens_per_s": round(ids.size / prefill_s, 1),
    }


def genai(folder: Path, prompts: list[Ids]) -> Iterator[dict[str, Any]]:
    """Yield onnxruntime-genai's rows, without and with CUDA graphs."""
    og: Any = importlib.import_module("onnxruntime_genai")
    for graph in ("0", "1"):
        config = og.Config(str(folder))
        cuda = {"cuda": {"enable_cuda_graph": graph}}
        options = {"session_options": {"provider_options": [cuda]}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        model = og.Model(config)
        for ids in prompts:
            length = ids.shape[1] + STEPS + 12
            search = {"max_length": length, "min_length": length, "batch_size": len(ids)}
            parameters = og.GeneratorParams(model)
            parameters.set_search_options(do_sample=False, **search)
            generator = og.Generator(model, parameters)
            begin = time.perf_counter()
            generator.append_tokens(ids.astype(np.int32))
            generator.generate_next_token()
            prefill_s = time.perf_counter() - begin
            step_s = time_steps(generator.generate_next_token)
            yield row(f"genai, CUDA graph {graph}", ids, prefill_s, step_s)
            del generator


def transformers(folder: Path, prompts: list[Ids]) -> Iterator[dict[str, Any]]:
    """Yield the rows of transformers in bf16."""
    torch: Any = importlib.import_module("torch")
    hf: Any = importlib.import_module("transformers")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for variant, forward in (("eager", model), ("compiled", compiled)):
        for ids in prompts:
            batch, prompt = ids.shape
            cache = hf.StaticCache(config=model.config, max_cache_len=prompt + STEPS + 12)
            with torch.inference_mode():
                begin = time.perf_counter()
                tokens = torch.from_numpy(ids).cuda()
                positions = torch.arange(prompt, device="cuda")
                model(tokens, past_key_values=cache, cache_position=positions, logits_to_keep=1)
                torch.cuda.synchronize()
                prefill_s = time.perf_counter() - begin
                token = torch.ones((batch, 1), dtype=torch.int64, device="cuda")
                position = torch.tensor([prompt], device="cuda")

                def step() -> None:
                    logits = forward(token, past_key_values=cache, cache_position=position).logits  # noqa: B023
                    token.copy_(logits[:, -1:].argmax(-1))  # noqa: B023
                    position.add_(1)  # noqa: B023
                    torch.cuda.synchronize()

                step_s = time_steps(step)
            yield row(f"transformers bf16, {variant}", ids, prefill_s, step_s)


def main() -> int:
    """Measure one peer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("peer", choices=("genai", "transformers"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    random = np.random.default_rng(1)
    prompts = [
        random.integers(10, 4000, (batch, context - STEPS - 12))
        for batch in options.batches
        for context in options.contexts
    ]
    measure = genai if options.peer == "genai" else transformers
    for result in measure(options.model, prompts):
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
