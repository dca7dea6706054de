"""Write the logits of one model for given token ids: the worker of bench_quality.py.

Runs in each peer's own environment, so it imports nothing of edgekit unless asked for a bundle.
Every window starts with an empty cache; no tokenizer and no template are involved.

    python logits_of.py KIND MODEL WINDOWS.npy OUT.npy
    KIND: transformers (float32), rtn-128 (float32, linears fake-quantized), genai, gguf, bundle

OUT.npy is float32 [windows, tokens, vocabulary]; OUT.json says how many bits the linears take.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import stored_bits

Windows = npt.NDArray[np.int64]
Sink = Callable[[int, npt.NDArray[np.float32]], None]
"""Takes the logits [tokens, vocabulary] of one window."""


def run_transformers(
    model_path: Path, windows: Windows, threads: int, sink: Sink, group_size: int = 0
) -> stored_bits.StoredLinears:
    """The bf16 checkpoint computed in float32, or its linears rounded to 4 bits first."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(mode=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_path, dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    linears = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    if group_size:
        for weight in linears:
            weight.copy_(round_to_nearest(weight, group_size))
    for index, window in enumerate(windows):
        sink(index, model(torch.from_numpy(window)[None]).logits[0].numpy())
    count = sum(weight.numel() for weight in linears)
    # bf16 as stored, or two codes a byte and a float16 scale for each group.
    stored = count // 2 + 2 * count // group_size if group_size else 2 * count
    return stored_bits.StoredLinears(count, stored)


def round_to_nearest(weight: Any, group_size: int) -> Any:
    """Plain 4 bits: the group's largest absolute value becomes 7, codes in [-8, 7]."""
    grouped = weight.reshape(weight.shape[0], -1, group_size)
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 7
    scale = scale.half().float()
    return ((grouped / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def run_genai(
    folder: Path, windows: Windows, threads: int, sink: Sink
) -> stored_bits.StoredLinears:
    """onnxruntime-genai's graph in ONNX Runtime, as genai runs it: empty cache, all positions."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    graph = folder / "model.onnx"
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    config = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
    empty = (1, config["num_key_value_heads"], 0, config["head_size"])
    names = {value.name for value in session.get_inputs()}
    cache = {name: np.zeros(empty, np.float32) for name in names if name.startswith("past_")}
    for index, window in enumerate(windows):
        feeds = {"input_ids": window[None], "attention_mask": np.ones((1, window.size), np.int64)}
        if "position_ids" in names:
            feeds["position_ids"] = np.arange(window.size)[None]
        sink(index, session.run(["logits"], feeds | cache)[0][0])
    return stored_bits.of_onnx(graph)


def run_gguf(path: Path, windows: Windows, threads: int, sink: Sink) -> stored_bits.StoredLinears:
    """A GGUF file in llama.cpp, through llama-cpp-python; its cache is f16, as by default."""
    llama_cpp: Any = importlib.import_module("llama_cpp")  # only in its environment
    size = windows.shape[1]
    model = llama_cpp.Llama(
        str(path),
        n_ctx=size,
        n_batch=size,
        n_ubatch=size,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    for index, window in enumerate(windows):
        model.reset()
        model.eval(window.tolist())
        sink(index, model.scores[:size])
    return stored_bits.of_gguf(path)


def run_bundle(
    folder: Path, windows: Windows, threads: int, sink: Sink
) -> stored_bits.StoredLinears:
    """An edgekit bundle in ONNX Runtime on the CPU."""
    from bundle_session import open_session

    session = open_session(folder, threads=threads, max_context=windows.shape[1])
    for index, window in enumerate(windows):
        sink(index, session.prefill(0, window.tolist(), all_logits=True))
    session.close()
    return stored_bits.of_bundle(folder)


def run(
    kind: str, model: Path, windows: Windows, threads: int, sink: Sink
) -> stored_bits.StoredLinears:
    """Run one model over all windows and return what its linears take."""
    if kind.startswith("rtn-"):
        return run_transformers(model, windows, threads, sink, group_size=int(kind[4:]))
    runners: dict[str, Callable[..., stored_bits.StoredLinears]] = {
        "transformers": run_transformers,
        "genai": run_genai,
        "gguf": run_gguf,
        "bundle": run_bundle,
    }
    return runners[kind](model, windows, threads, sink)


def main() -> int:
    """Write the logits and the bits of one model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind")
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path, help="int64 [windows, tokens]")
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    windows = np.load(options.windows)
    logits: list[npt.NDArray[np.float32]] = []  # the memory map, once the vocabulary is known

    def sink(index: int, values: npt.NDArray[np.float32]) -> None:
        if not logits:
            shape = (*windows.shape, values.shape[1])
            logits.append(np.lib.format.open_memmap(options.out, "w+", np.float32, shape))
        logits[0][index] = values

    linears = run(options.kind, options.model, windows, options.threads, sink)
    document = {**asdict(linears), "bits_per_linear_weight": linears.bits_per_weight}
    options.out.with_suffix(".json").write_text(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
