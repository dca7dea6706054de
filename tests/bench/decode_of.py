"""Time prefill and decode of one model in this process: the worker of bench_decode.py.

    python decode_of.py KIND MODEL --threads 2 --prompts 128,512 --contexts 128,2048 --tokens 64
    KIND: genai (runs in its own environment), bundle, bundle-standard, bundle-ort (that dialect)

Prints one JSON object: ``pp<n>``, prompt tokens per second of an n-token prefill into an empty
cache (the last position's logits only), and ``tg@<n>``, tokens per second of greedy decoding
behind n tokens of context, the choice of each token included. Weights are random in speed
checkpoints, so an end token means nothing and does not stop the loop.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

WARMUP_TOKENS = 4
FIRST_ID, LAST_ID = 10, 4000


class Engine(Protocol):
    """What is timed: one sequence."""

    def prefill(self, tokens: npt.NDArray[np.int64]) -> None:
        """Start over with ``tokens``."""

    def decode(self) -> None:
        """Choose the likeliest token and run it."""


class GenaiEngine:
    """onnxruntime-genai with its cache shared between steps, as its builder configures it."""

    def __init__(self, folder: Path, *, threads: int, capacity: int) -> None:
        og: Any = importlib.import_module("onnxruntime_genai")  # only in its environment
        config = og.Config(str(folder))
        session = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": session}}))
        self._og = og
        self._model = og.Model(config)
        self._capacity = capacity
        self._generator: Any = None

    def prefill(self, tokens: npt.NDArray[np.int64]) -> None:
        """Make a new generator, allocate its cache and run the prompt."""
        parameters = self._og.GeneratorParams(self._model)
        # min_length keeps an end token from stopping the loop.
        length = self._capacity
        parameters.set_search_options(do_sample=False, max_length=length, min_length=length)
        self._generator = self._og.Generator(self._model, parameters)
        self._generator.append_tokens(tokens.astype(np.int32))

    def decode(self) -> None:
        """Run one step of genai's greedy search."""
        self._generator.generate_next_token()


class BundleEngine:
    """An edgekit bundle in ONNX Runtime on the CPU."""

    def __init__(
        self, folder: Path, *, threads: int, capacity: int, dialect: str | None = None
    ) -> None:
        from bundle_session import open_session

        self._session = open_session(folder, threads=threads, max_context=capacity, dialect=dialect)
        self._position = 0
        self._logits: npt.NDArray[np.float32] = np.empty(0, np.float32)

    def prefill(self, tokens: npt.NDArray[np.int64]) -> None:
        """Run the prompt in slot 0."""
        self._logits = self._session.prefill(0, tokens.tolist())
        self._position = tokens.size

    def decode(self) -> None:
        """Run the likeliest token."""
        token = int(self._logits.argmax())
        self._logits = self._session.decode([0], [token], [self._position])[0]
        self._position += 1


ENGINES: dict[str, Callable[..., Engine]] = {
    "genai": GenaiEngine,
    "bundle": BundleEngine,
    "bundle-standard": partial(BundleEngine, dialect="standard"),
    "bundle-ort": partial(BundleEngine, dialect="ort"),
}


def measure(
    engine: Engine, prompts: Sequence[int], contexts: Sequence[int], tokens: int
) -> dict[str, float]:
    """Return tokens per second of every prompt length and context."""
    random = np.random.default_rng(0)
    ids = random.integers(FIRST_ID, LAST_ID, max([*prompts, *contexts]))
    engine.prefill(ids[:32])  # first runs allocate and pack
    engine.decode()
    figures = {}
    for size in prompts:
        engine.prefill(ids[:size])  # shapes seen once are not timed
        start = time.perf_counter()
        engine.prefill(ids[:size])
        figures[f"pp{size}"] = size / (time.perf_counter() - start)
    for context in contexts:
        engine.prefill(ids[:context])
        for _ in range(WARMUP_TOKENS):
            engine.decode()
        start = time.perf_counter()
        for _ in range(tokens):
            engine.decode()
        figures[f"tg@{context}"] = tokens / (time.perf_counter() - start)
    return figures


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Measure one model once and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", choices=sorted(ENGINES))
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=_numbers, default=[128, 512])
    parser.add_argument("--contexts", type=_numbers, default=[128, 2048])
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    # Every engine gets the same room: the longest context and what is generated behind it.
    capacity = max([*options.contexts, *options.prompts]) + options.tokens + 2 * WARMUP_TOKENS

    engine = ENGINES[options.kind](options.model, threads=options.threads, capacity=capacity)
    print(json.dumps(measure(engine, options.prompts, options.contexts, options.tokens)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
