"""The process that a candidate is tried in: what it takes of the machine is given back with it.

A request is one of two: ``measure`` loads a bundle, holds it to the golden sequences and times it;
``score`` says what another engine's tokens should have had for log-probabilities. For how requests
come and answers go see :mod:`edgekit.worker_process`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import worker_process
from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.choice.edgellm_driver import peak_resident_bytes
from edgekit.choice.workload import Workload, time_session
from edgekit.engine.load import LoadedModel, load_bundle
from edgekit.evaluate.golden import check_golden
from edgekit.evaluate.golden_set import GoldenSet
from edgekit.evaluate.scores import score_logits
from edgekit.pipeline.verify import ENGINE_LIMITS
from edgekit.trt.holding import read_memory

WORKER = (sys.executable, "-c", "from edgekit.choice.worker import main; main()")
Phase = Callable[[str], None]


def main() -> None:
    """Serve one request and end."""
    worker_process.serve(serve)


def serve(request: dict[str, Any], phase: Phase) -> dict[str, Any]:
    """Measure or score.

    Args:
        request: ``bundle`` (a path), ``provider``, ``dialect``, ``threads``, ``engines``
            (TensorRT's folder); to measure also
            ``workload`` and whether to ``gate``; to score ``answers``.
        phase: Called with what begins.

    Raises:
        EdgekitError: The bundle cannot be loaded there, or its engine fails.
    """
    bundle = open_bundle(Path(request["bundle"]))
    available = read_memory().available_bytes
    phase("load")
    start_s, more = time.perf_counter(), dict[str, Any]()
    if request["provider"] == "tensorrt":
        more["cache"] = Path(request["engines"])
    model = load_bundle(
        bundle,
        provider=request["provider"],
        dialect=request["dialect"],
        threads=request["threads"],
        digests=False,  # the caller has checked them, once for all candidates
        **more,
    )
    load_s = time.perf_counter() - start_s
    try:
        if "answers" in request:
            phase("score")
            return {"scores": [_score(model, answer) for answer in request["answers"]]}
        return {"load_s": round(load_s, 3), **_measure(bundle, model, request, available, phase)}
    finally:
        model.session.close()


def _measure(
    bundle: Bundle, model: LoadedModel, request: dict[str, Any], available: int, phase: Phase
) -> dict[str, Any]:
    golden, gate = GoldenSet.from_dict(bundle.golden()), None
    if request["gate"]:
        phase("gate")
        gate = check_golden(model.session, golden, ENGINE_LIMITS).to_dict()
    tokens = [token for sequence in golden.sequences for token in sequence.token_ids]
    phase("speed")
    rates = time_session(model.session, Workload.from_dict(request["workload"]), tokens)
    return {
        "gate": gate,
        "rates": [asdict(rate) for rate in rates],
        "resident_bytes": peak_resident_bytes(),
        "taken_bytes": max(0, available - read_memory().available_bytes),
    }


def _score(model: LoadedModel, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what a model says of an answer that another engine gave, token by token."""
    prompt = model.tokenizer.encode(model.prompt(answer["messages"]), add_special=model.adds_bos)
    given = answer["token_ids"]
    logits = model.session.prefill(0, [*prompt, *given], all_logits=True)
    model.session.release(0)
    scores = score_logits(logits[len(prompt) - 1 : -1], np.asarray(given, np.int64), top_k=2)
    top = scores.top_log_probability
    return {
        "prompt_tokens": len(prompt),
        "log_probability_nats": scores.log_probability.tolist(),
        "top1_ids": scores.top_ids[:, 0].tolist(),
        "top1_margin_nats": (top[:, 0] - top[:, 1]).tolist(),
    }
