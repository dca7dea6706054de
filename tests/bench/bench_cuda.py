"""A bundle on CUDA (onnxruntime-gpu): logits against float64, rates, where a step's time goes.

    python tests/bench/bench_cuda.py check BUNDLE           # logits against float64 on the GPU
    python tests/bench/bench_cuda.py time BUNDLE --contexts 512 2048 4096
    python tests/bench/bench_cuda.py profile BUNDLE --contexts 512 4096

Each of ``--variants`` is measured: ``standard`` and ``ort`` are the bundle's graphs, ``ort-intb``
the latter with ONNX Runtime's weight-only kernels (``ep.cuda.fpa_intb_gemm``; groups of 32 only).
``check`` and ``time`` run them with and without CUDA graphs. ``profile`` runs them without, every
kernel waited for (CUDA_LAUNCH_BLOCKING): operators' times are the GPU's and the launch's; the step
is longer.
``ORT_ENABLE_XQA=0`` or ``=1`` in the environment chooses the attention kernel of the ort variants.

``time`` decodes by each of ``--choices`` (greedy; top-k 40, top-p 0.95; top-p 0.95 alone) on each
of ``--paths``: ``selected`` has candidates found on the GPU, ``whole`` brings every logit back and
searches it on the host. ``--selects`` says where candidates are found (``ort_select.Select``).
``rows_fetched_per_step`` are the whole rows that the first path asked for all the same; weights
that are random make flat distributions, which ask far more often than a model. ``outside_us`` is
what of a step is not in ONNX Runtime's runs: copies and Python. A variant that fails has a row with
its error. ``cuda_rounds.py`` runs this in turns with an earlier tree and onnxruntime-genai.

Needs torch with CUDA for ``check`` only. Prints one JSON document. Rates include everything a token
costs: inputs to the GPU, the step, what comes back, choosing the token that is fed next.
``--provider cpu`` runs the same code without a GPU, for trying it out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from runs_timed import runs_timed

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.checkpoint.lazy import read_all
from edgekit.engine.candidates import Candidates
from edgekit.engine.load import load_bundle
from edgekit.engine.sampler import Sampler, SamplingParams
from edgekit.engine.session import decode_rows
from edgekit.errors import EngineError
from edgekit.graph.exponents import Exponents
from edgekit.models.config import ModelConfig, layer_linears
from edgekit.models.rope import cos_sin_tables
from edgekit.pipeline.stored_tensors import StoredTensors

PROMPT_TOKENS = 96
DECODED_TOKENS = 16
STEPS = 60
PROFILED_STEPS = 20
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "standard": ("standard", {}),
    "ort": ("ort", {}),
    "ort-intb": ("ort", {"ep.cuda.fpa_intb_gemm": "1"}),
}
"""Dialect and session settings of each."""
CHOICES = {
    "greedy": SamplingParams(),
    "top-k": SamplingParams(temperature=0.6, top_p=0.95, top_k=40, seed=1),
    "top-p": SamplingParams(temperature=0.6, top_p=0.95, seed=1),
}
PATHS = ("selected", "whole")


def open_variant(bundle: Bundle, variant: str, provider: Any = "cuda", **options: Any) -> Any:
    """Open a bundle the way a variant runs it."""
    dialect, settings = VARIANTS[variant]
    return load_bundle(
        bundle, provider=provider, dialect=dialect, settings=settings, digests=False, **options
    ).session


class Float64Model:
    """The stored weights of a bundle, all arithmetic in float64 on the GPU."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self.config = ModelConfig.from_dict(dict(manifest.model["config"]))
        entries = {entry.name: entry for entry in manifest.tensors}
        untied = replace(self.config, tie_word_embeddings=False)
        exponents = Exponents.from_dict(manifest.f16_exponents)
        self._stored = StoredTensors(bundle.path, entries, untied, exponents)

    def logits(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Return logits [S, V]."""
        import torch

        tables = cos_sin_tables(self.config.rope, self.config.head_dim, np.arange(len(tokens)))
        cos_sin = tuple(torch.from_numpy(table).cuda().double() for table in tables)
        mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1).cuda().double()
        x = self._weight("model.embed_tokens.weight")[torch.tensor(tokens).cuda()]
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            h = self._norm(x, f"{prefix}.input_layernorm.weight")
            x = x + self._attention(layer, h, cos_sin, mask)
            h = self._norm(x, f"{prefix}.post_attention_layernorm.weight")
            gate, up = self._linear(layer, 4, h), self._linear(layer, 5, h)
            x = x + self._linear(layer, 6, torch.nn.functional.silu(gate) * up)
        x = self._norm(x, "model.norm.weight")
        result: np.ndarray[Any, Any] = (x @ self._weight("lm_head.weight").T).cpu().numpy()
        return result

    def _attention(self, layer: int, h: Any, cos_sin: tuple[Any, ...], mask: Any) -> Any:
        config = self.config
        q = _rotate(self._heads(layer, 0, h, "q_norm"), *cos_sin)
        k = _rotate(self._heads(layer, 1, h, "k_norm"), *cos_sin)
        groups = config.num_attention_heads // config.num_key_value_heads
        k = k.repeat_interleave(groups, 0)
        v = self._heads(layer, 2, h, None).repeat_interleave(groups, 0)
        scores = q @ k.transpose(1, 2) * config.head_dim**-0.5 + mask
        a = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(h), -1)
        return self._linear(layer, 3, a)

    def _heads(self, layer: int, index: int, value: Any, norm: str | None) -> Any:
        y = self._linear(layer, index, value).view(len(value), -1, self.config.head_dim)
        if norm and self.config.qk_norm:
            y = self._norm(y, f"model.layers.{layer}.self_attn.{norm}.weight")
        return y.transpose(0, 1)

    def _linear(self, layer: int, index: int, value: Any) -> Any:
        spec = layer_linears(self.config, layer)[index]
        y = value @ self._weight(spec.weight_key).T
        return y + self._weight(f"{spec.name}.bias") if spec.bias else y

    def _norm(self, x: Any, name: str) -> Any:
        variance = (x * x).mean(-1, keepdim=True)
        return x * (variance + self.config.rms_norm_eps).rsqrt() * self._weight(name)

    def _weight(self, name: str) -> Any:
        import torch

        return torch.from_numpy(np.asarray(read_all(self._stored.open(name)))).cuda().double()


def _rotate(x: Any, cos: Any, sin: Any) -> Any:
    import torch

    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def check(path: Path, variants: list[str]) -> dict[str, Any]:
    """Compare prefill and decode logits, with and without CUDA graphs, with float64."""
    bundle = open_bundle(path)
    vocab = bundle.manifest.model["config"]["vocab_size"]
    total = PROMPT_TOKENS + DECODED_TOKENS
    tokens = np.random.default_rng(0).integers(0, vocab, total).tolist()
    wanted = Float64Model(bundle).logits(tokens)
    rows = []
    for variant in variants:
        for graph in (False, True):
            session = open_variant(bundle, variant, max_sequences=4, cuda_graph=graph)
            got = [session.prefill(1, tokens[:64], all_logits=True)]
            got += [session.prefill(1, tokens[64:PROMPT_TOKENS], 64, all_logits=True)]
            got += [session.decode([1], [tokens[at]], [at]) for at in range(PROMPT_TOKENS, total)]
            # Slot 3 alone, then a batch of lengths that differ, as the scheduler runs them.
            session.prefill(3, tokens[:40])
            both = session.decode([1, 3], [tokens[-1], tokens[40]], [total - 1, 40])
            picked = session.decode_candidates(
                [1, 3], [tokens[-1], tokens[40]], [total - 1, 40], [0.6, 1.0]
            )
            logits = np.concatenate(got).astype(np.float64)
            errors = np.linalg.norm(logits - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
            batch = np.linalg.norm(both - wanted[[-1, 40]], axis=1)
            rows.append(
                {
                    "variant": variant,
                    "cuda_graph": graph,
                    "prefill_relative_error": float(errors[:PROMPT_TOKENS].max()),
                    "decode_relative_error": float(errors[PROMPT_TOKENS:].max()),
                    "batch_relative_error": float(
                        (batch / np.linalg.norm(wanted[[-1, 40]], axis=1)).max()
                    ),
                    "top1_agreement": float((logits.argmax(1) == wanted.argmax(1)).mean()),
                    "candidates": compare_candidates(picked, [0.6, 1.0]),
                }
            )
            session.close()
    return {"bundle": path.name, "rows": rows}


def compare_candidates(picked: list[Any], temperatures: list[float]) -> dict[str, Any]:
    """Hold candidates to the rows they were selected from, on the same device."""
    if not all(isinstance(one, Candidates) for one in picked):
        return {"selected": False}
    exact, error = True, 0.0
    for one, temperature in zip(picked, temperatures, strict=True):
        row = one.row()
        exact &= bool((row[one.tokens] == one.logits).all())
        exact &= bool((np.sort(one.logits) == np.sort(row)[-len(one.logits) :]).all())
        total = np.exp((row - row.max()).astype(np.float64) / temperature).sum()
        error = max(error, abs(one.total / total - 1))
    return {"selected": True, "exact": exact, "sum_relative_error": error}


def measure(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time decode at each context and batch, with and without CUDA graphs, and prefill."""
    bundle = open_bundle(path)
    weights = sum(e.size_bytes for e in bundle.manifest.tensors if "embed_tokens" not in e.name)
    rows: list[dict[str, Any]] = []
    graphs = [True] if options.captured else [False, True]
    for variant, graph, select in itertools.product(options.variants, graphs, options.selects):
        if VARIANTS[variant][0] != "ort" and select != "apart":
            continue  # nothing joins it
        same: dict[str, Any] = {"variant": variant, "cuda_graph": graph, "select": select}
        try:
            start = time.perf_counter()
            session = open_variant(
                bundle,
                variant,
                options.provider,
                max_sequences=max(options.batches),
                cuda_graph=graph,
                select=select,
            )
            same["load_s"] = round(time.perf_counter() - start, 1)
            for context in options.contexts:
                for row in time_context(session, context, options, weights):
                    rows.append({**same, **row})
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            session.close()
        except EngineError as error:
            rows.append({**same, "error": str(error)})
    return {"bundle": path.name, "streamed_weight_bytes": weights, "rows": rows}


def time_context(
    session: Any, context: int, options: argparse.Namespace, weights: int
) -> Iterator[dict[str, Any]]:
    """Yield decode rates behind a context, and the rate it was prefilled at."""
    prompt = np.random.default_rng(1).integers(0, 4000, context - STEPS - 12).tolist()
    session.prefill(0, prompt)  # shapes seen once are not timed
    started = time.perf_counter()
    for slot in range(max(options.batches)):
        session.prefill(slot, prompt)
    prefill_s = (time.perf_counter() - started) / max(options.batches)
    for batch in options.batches:
        for choice in options.choices:
            for path in options.paths:
                try:
                    times, fetched = time_steps(session, len(prompt), batch, choice, path)
                except EngineError as error:
                    yield {"batch": batch, "choice": choice, "path": path, "error": str(error)}
                    continue
                median = statistics.median(step for step, _ in times)
                outside = statistics.median(step - run for step, run in times)
                yield {
                    "context_tokens": context,
                    "batch": batch,
                    "choice": choice,
                    "path": path,
                    "decode_step_ms": round(1000 * median, 3),
                    "decode_tokens_per_s": round(batch / median, 1),
                    "outside_us": round(1e6 * outside, 1),
                    "rows_fetched_per_step": round(fetched / STEPS, 2),
                    "weight_stream_gb_per_s": round(weights / median / 1e9, 1),
                    "prefill_tokens_per_s": round(len(prompt) / prefill_s, 1),
                }


def time_steps(
    session: Any, start: int, batch: int, choice: str, path: str
) -> tuple[list[tuple[float, float]], int]:
    """Time steps that choose what the next is fed.

    Returns:
        Of each step its seconds, and those of them in ONNX Runtime's runs; rows fetched in all.
    """
    slots, tokens, times = list(range(batch)), [1] * batch, list[tuple[float, float]]()
    samplers = [Sampler(CHOICES[choice]) for _ in slots]
    wanted = [sampler.selects_at if path == "selected" else None for sampler in samplers]
    before = session.rows_fetched
    with runs_timed() as runs:
        for step in range(STEPS):
            runs.clear()
            begin = time.perf_counter()
            rows = decode_rows(session, slots, tokens, [start + step] * batch, wanted)
            pairs = zip(samplers, rows, strict=True)
            tokens = [sampler.sample(row, step) for sampler, row in pairs]
            times.append((time.perf_counter() - begin, sum(runs)))
    return times[10:], session.rows_fetched - before


@contextlib.contextmanager
def profiled(prefix: str) -> Iterator[None]:
    """Make sessions opened inside write a profile."""
    import onnxruntime as ort

    real = ort.InferenceSession

    def opened(path: str, options: Any, **more: Any) -> Any:
        options.enable_profiling, options.profile_file_prefix = True, prefix
        return real(path, options, **more)

    ort.InferenceSession = opened
    try:
        yield
    finally:
        ort.InferenceSession = real


def profile(path: Path, variants: list[str], contexts: list[int]) -> dict[str, Any]:
    """Return where the time of decode steps of one sequence goes, by operator."""
    bundle, rows = open_bundle(path), []
    for variant in variants:
        for context in contexts:
            with tempfile.TemporaryDirectory() as folder:
                with profiled(f"{folder}/profile"):
                    session = open_variant(bundle, variant, cuda_graph=False)
                prompt = np.random.default_rng(1).integers(0, 4000, context - 32).tolist()
                session.prefill(0, prompt)
                for step in range(PROFILED_STEPS + 4):
                    session.decode([0], [step], [len(prompt) + step])
                events = json.loads(Path(session._session.end_profiling()).read_text())
                session.close()
            rows.append({"variant": variant, "context_tokens": context, **summarize(events)})
    return {"bundle": path.name, "rows": rows}


def summarize(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return milliseconds a step and runs a step by operator and by where it ran, largest first."""
    runs = [event for event in events if event["name"] == "model_run"][-PROFILED_STEPS:]
    spent, count = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            if event["ts"] < runs[0]["ts"]:
                continue
            arguments = event["args"]
            where = arguments.get("provider", "").removesuffix("ExecutionProvider")
            name = f"{arguments['op_name']} on {where}"
            spent[name] += event["dur"]
            count[name] += 1
    return {
        "step_ms": round(statistics.median(event["dur"] for event in runs) / 1000, 3),
        "operators": {
            name: {
                "ms": round(micros / 1000 / len(runs), 4),
                "runs": round(count[name] / len(runs), 1),
            }
            for name, micros in spent.most_common()
        },
    }


def main() -> int:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("check", "time", "profile"))
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=["standard", "ort"]
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--captured", action="store_true", help="time with CUDA graphs only")
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    selects = ["apart", "joined", "joined-greedy"]
    parser.add_argument("--selects", nargs="+", choices=selects, default=selects)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="of time")
    options = parser.parse_args()
    bundle, variants = options.bundle, options.variants
    if options.what == "check":
        report = check(bundle, variants)
    elif options.what == "time":
        report = measure(bundle, options)
    else:
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when the first session starts CUDA
        report = profile(bundle, variants, options.contexts)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
