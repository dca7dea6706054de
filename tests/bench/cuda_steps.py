"""What a decode step on CUDA costs outside its graph, and what selecting candidates costs.

    python tests/bench/cuda_steps.py select --vocabs 151936 128256 --batches 1 8
    python tests/bench/cuda_steps.py operators --vocabs 151936
    python tests/bench/cuda_steps.py parts BUNDLE --contexts 512 4096 --batches 1 8

``select`` needs no bundle: random float16 logits, some of them tied, are selected from on the
device with and without a CUDA graph, held to NumPy's answer, and timed beside bringing them to the
host (``whole``: copy, float32, search for what is not finite). ``ungrouped`` is ONNX Runtime's
``TopK`` of the whole vocabulary. ``operators`` says where a selection's time goes. ``parts`` times
the parts of a session's step one by one, and the same nodes run unbound (``session.run`` of NumPy
arrays: caches are copied in and out; without a CUDA graph). A measurement that fails is a row with
its error. Prints one JSON document, and each row to stderr as it is had. ``--provider cpu`` runs
the same code without a GPU, for trying it out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from bench_cuda import PROFILED_STEPS, open_variant, profiled, summarize

from edgekit.bundle.reader import open_bundle
from edgekit.engine.half import to_float32
from edgekit.engine.ort import OrtSession
from edgekit.engine.ort_open import open_ort
from edgekit.engine.ort_select import SAMPLED_CANDIDATES, Selector, broken, candidates_of
from edgekit.engine.select_graph import SelectLayout, select_graph
from edgekit.errors import EngineError

REPEATS = 100
WARMUP = 10
UNBOUND_REPEATS = 5
KINDS = ("greedy", "sampled", "sampled, ungrouped")


def microseconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the median time of a call; the first ones are not counted."""
    times = []
    for turn in range(repeats + min(WARMUP, repeats)):
        begin = time.perf_counter()
        act()
        if turn >= WARMUP or repeats < WARMUP:
            times.append(time.perf_counter() - begin)
    return round(1e6 * statistics.median(times), 1)


def select_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row a vocabulary, batch, kind of selection and CUDA graph."""
    import onnxruntime as ort

    for vocab in options.vocabs:
        for batch in options.batches:
            logits = random_logits(vocab, batch)
            value = ort.OrtValue.ortvalue_from_numpy(logits.copy(), options.provider, 0)
            same = {"vocab": vocab, "batch": batch}
            yield {**same, "kind": "whole", "us": microseconds(functools.partial(bring, value))}
            for graph in (False, True):
                for kind in KINDS:
                    named = {**same, "kind": kind, "cuda_graph": graph}
                    try:
                        yield {**named, **time_selection(logits, value, kind, options, graph=graph)}
                    except EngineError as error:
                        yield {**named, "error": str(error)}


def random_logits(vocab: int, batch: int) -> np.ndarray[Any, Any]:
    """Return float16 logits [B, 1, V], peaked as a model's, on a grid coarse enough for ties."""
    random = np.random.default_rng(vocab + batch)
    logits = random.normal(0, 2, (batch, 1, vocab))
    logits[:, :, random.permutation(vocab)[:30]] += np.linspace(8, 14, 30)
    return (np.round(logits * 32) / 32).astype(np.float16)


def bring(value: Any) -> bool:
    """Do what a step did that brought all its logits to the host."""
    return bool(np.isfinite(to_float32(value.numpy()).sum(axis=-1)).all())


def time_selection(
    logits: np.ndarray[Any, Any], value: Any, kind: str, options: argparse.Namespace, *, graph: bool
) -> dict[str, Any]:
    """Check one selection, and time the run and what makes candidates of it."""
    batch, sums = len(logits), kind != "greedy"
    selector = make_selector(logits.shape[-1], kind, options.provider, graph=graph)
    selection = selector.attach(value, batch, sums=sums)
    heat = np.full((batch, 1), 0.6, np.float32)
    exact, error = True, 0.0
    fetchers = [lambda: logits[0, 0]] * batch
    for _ in range(4):  # as run, as captured, as replayed
        selected = selection.run(heat)
        found = candidates_of(selected, selection.layout, fetchers)
        exact &= not broken(selected)
        for one, row in zip(found, to_float32(logits[:, 0]), strict=True):
            exact &= bool((row[one.tokens] == one.logits).all())
            exact &= bool((np.sort(one.logits) == np.sort(row)[-len(one.logits) :]).all())
            if one.total is not None:
                total = np.exp((row - row.max()).astype(np.float64) / 0.6).sum()
                error = max(error, abs(one.total / total - 1))
    times = {
        "us": microseconds(lambda: selection.run(heat)),
        "candidates_us": microseconds(lambda: candidates_of(selected, selection.layout, fetchers)),
    }
    damaged = logits.copy()
    damaged[-1] = np.nan  # the worst there is: TopK finds nothing to write
    value.update_inplace(damaged)
    told = broken(selection.run(heat)) == [batch - 1]
    value.update_inplace(logits)
    return {
        "exact": exact,
        "nan_told": told,
        "sum_relative_error": error,
        **times,
    }


def make_selector(vocab: int, kind: str, provider: Any, *, graph: bool) -> Selector:
    """Return a selector, its sampling graph without groups for that kind."""
    opened = functools.partial(open_ort, provider=provider, threads=None, cuda_graph=graph)
    selector = Selector(vocab, np.float16, provider, opened, cuda_graph=graph)
    if kind.endswith("ungrouped"):
        layout = SelectLayout.for_vocabulary(vocab, SAMPLED_CANDIDATES, sums=True)
        layout = replace(layout, width=1)
        selector._opened[True] = layout, opened(select_graph(layout, np.float16))
    return selector


def operator_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield where a selection's time goes, every kernel waited for."""
    import onnxruntime as ort

    for vocab, batch, kind in itertools.product(options.vocabs, options.batches, KINDS):
        logits = random_logits(vocab, batch)
        value = ort.OrtValue.ortvalue_from_numpy(logits.copy(), options.provider, 0)
        with tempfile.TemporaryDirectory() as folder:
            with profiled(f"{folder}/profile"):
                selector = make_selector(vocab, kind, options.provider, graph=False)
                selection = selector.attach(value, batch, sums=kind != "greedy")
            for _ in range(PROFILED_STEPS + 4):
                selection.run(np.ones((batch, 1), np.float32))
            events = json.loads(Path(selection._session.end_profiling()).read_text())
        yield {"vocab": vocab, "batch": batch, "kind": kind, **summarize(events)}


def parts_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row a variant, CUDA graph, context and batch."""
    bundle = open_bundle(options.bundle)
    for variant in options.variants:
        for graph in (False, True):
            same = {"variant": variant, "cuda_graph": graph}
            try:
                most = max(options.batches)
                session = open_variant(
                    bundle,
                    variant,
                    options.provider,
                    max_sequences=most,
                    cuda_graph=graph,
                    select="apart",
                )
                for context in options.contexts:
                    prompt = np.random.default_rng(1).integers(0, 4000, context - 8).tolist()
                    for slot in range(most):
                        session.prefill(slot, prompt)
                    for batch in options.batches:
                        named = {**same, "context_tokens": context, "batch": batch}
                        yield {**named, **time_parts(session, batch, len(prompt), graph=graph)}
                session.close()
            except EngineError as error:
                yield {**same, "error": str(error)}


def time_parts(session: OrtSession, batch: int, position: int, *, graph: bool) -> dict[str, Any]:
    """Time the parts of one step, at one position again and again."""
    slots = list(range(batch))
    session.decode(slots, [1] * batch, [position] * batch)
    step = session._decode_step(*session._block(range(batch)))
    assert session._selector is not None
    run = functools.partial(step.run, session._session)
    result: dict[str, Any] = {"step_us": microseconds(run)}
    for kind, sums in (("greedy", False), ("sampled", True)):
        selection = step.selection(session._selector, sums=sums)
        heat = np.full((step.batch, 1), 0.6, np.float32)
        result[f"select_{kind}_us"] = microseconds(functools.partial(selection.run, heat))
    logits = step.logits()
    wide = to_float32(logits)
    result["logits_to_host_us"] = microseconds(step.logits)
    result["one_row_us"] = microseconds(lambda: step.row(session._session, 0))
    result["widen_us"] = microseconds(lambda: to_float32(logits))
    result["search_us"] = microseconds(lambda: np.isfinite(wide.sum(axis=-1)).all())
    result["argmax_us"] = microseconds(lambda: wide.argmax(axis=-1))
    if not graph:
        feeds = {**step.inputs.arrays, **caches(session, step.batch)}
        result["unbound_us"] = microseconds(
            lambda: session._session.run(None, feeds), UNBOUND_REPEATS
        )
    return result


def caches(session: OrtSession, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return empty caches to feed an unbound run."""
    shape, dtype = session._cache.shape(batch), session._cache.dtype
    names = [value.name for value in session._session.get_inputs()]
    return {name: np.zeros(shape, dtype) for name in names if name.startswith("past_")}


def main() -> int:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("select", "operators", "parts"))
    parser.add_argument("bundle", type=Path, nargs="?", help="of parts")
    parser.add_argument("--vocabs", type=int, nargs="+", default=[151936, 128256])
    parser.add_argument("--variants", nargs="+", default=["ort"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.what == "parts" and options.bundle is None:
        parser.error("parts needs a bundle")
    if options.what == "operators":
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # read when the first session starts CUDA
    rows = []
    make = {"select": select_rows, "operators": operator_rows, "parts": parts_rows}
    for row in make[options.what](options):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
