"""NVIDIA's TensorRT Edge-LLM on trial: its engine is built of a bundle's blobs, gated and timed.

It builds engines from a checkpoint (``exporters.gptq_checkpoint``), and its Python API speaks text,
not logits: it is no ``InferenceSession``. So the gate goes the other way round. The engine answers
some questions greedily and says how likely each of its tokens was; a session of edgekit's, fed the
same tokens, says how likely they should have been. Not run on a Jetson: docs/edgellm.md.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.reader import Bundle
from edgekit.choice.workload import Rate, Workload
from edgekit.errors import EngineError, MissingInterpreterError, QualityError
from edgekit.evaluate.golden import GoldenReport, compare_scores
from edgekit.exporters.gptq_checkpoint import export_gptq
from edgekit.pipeline.verify import ENGINE_LIMITS
from edgekit.progress import Progress
from edgekit.text.tokenizer import Tokenizer
from edgekit.worker_process import Remedies, ask

PACKAGE = "tensorrt-edgellm"
QUESTIONS = (
    "What is 58 + 67?",
    "Write one sentence about the sea.",
    "Name three colours and say which is the brightest.",
    "Why is the sky blue?",
)
GATE_TOKENS = 32
DRIVER = Path(__file__).with_name("edgellm_driver.py")
_REMEDY = "Look at docs/edgellm.md; leave --edgellm-python out to do without it"


def find_edgellm(python: Path) -> str:
    """Return the version of ``tensorrt-edgellm`` in an environment, without importing it.

    Raises:
        MissingInterpreterError: There is no such Python, or it has no such package.
    """
    code = f"from importlib.metadata import version; print(version({PACKAGE!r}))"
    try:
        done = subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise MissingInterpreterError(
            f"cannot run {python}: {error.strerror or error}", _REMEDY
        ) from error
    if done.returncode:
        raise MissingInterpreterError(f"{python} has no {PACKAGE}", _REMEDY)
    return done.stdout.strip()


def checkpoint_of(bundle: Bundle, folder: Path, progress: Progress) -> Path:
    """Return the checkpoint that the engine is built of; written into ``folder`` if it must be.

    Raises:
        EdgekitError: The bundle cannot be written as one; see ``export_gptq``.
    """
    out = folder / f"{bundle.digest}-gptq"
    if not (out / "config.json").is_file():
        export_gptq(bundle, out, progress=progress)
    return out


def run_edgellm(
    python: Path,
    checkpoint: Path,
    workload: Workload,
    texts: Sequence[str],
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Build or load the engine, let it answer and time it; see ``edgellm_driver.serve``.

    Args:
        python: Interpreter of its environment.
        checkpoint: What it is built of; engines are kept beside it.
        workload: The work.
        texts: A text of about each context's length.
        rounds: Answers timed a context; the median counts.
        progress: Told what begins.

    Raises:
        EngineError: It fails; what it said is in the message.
    """
    request = {
        "model": str(checkpoint),
        "cache_dir": str(checkpoint.with_name("edgellm-cache")),
        "max_input_len": max(workload.contexts),
        "max_kv_cache_capacity": max(workload.contexts) + workload.answer_tokens,
        "questions": [[{"role": "user", "content": question}] for question in QUESTIONS],
        "gate_tokens": GATE_TOKENS,
        "texts": list(texts),
        "answer_tokens": workload.answer_tokens,
        "rounds": rounds,
        "remedy": _REMEDY,
    }
    remedies = Remedies(killed=_REMEDY, failed=_REMEDY)
    return ask((str(python), str(DRIVER)), request, "TensorRT Edge-LLM", remedies, progress)


def texts_for(workload: Workload, tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return texts of about as many tokens as the prompts of a workload have."""
    texts = []
    for context in workload.contexts:
        count = context - workload.answer_tokens
        repeated = (list(tokens) * (count // len(tokens) + 1))[:count]
        texts.append(tokenizer.decode(repeated))
    return texts


def rates_of(said: dict[str, Any], workload: Workload) -> list[Rate]:
    """Return an answer's rates as a session's."""
    return [
        Rate(
            context,
            round(float(row["prefill_tokens_per_s"]), 3),
            round(float(row["decode_tokens_per_s"]), 3),
        )
        for context, row in zip(workload.contexts, said["rows"], strict=True)
    ]


def questions_for(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a session must score: the questions, and the engine's answers to them.

    Raises:
        EngineError: The engine gave no log-probability for some token, or no answer at all.
    """
    for question, answer in zip(QUESTIONS, said["answers"], strict=True):
        given, known = len(answer["token_ids"]), len(answer["log_probability_nats"])
        if not given or known != given:
            raise EngineError(
                f"TensorRT Edge-LLM gave {known} log-probabilities for the {given} tokens of its "
                f"answer to {question!r}",
                _REMEDY,
            )
    return [
        {"messages": [{"role": "user", "content": question}], "token_ids": answer["token_ids"]}
        for question, answer in zip(QUESTIONS, said["answers"], strict=True)
    ]


def judge(said: dict[str, Any], scores: Sequence[dict[str, Any]]) -> GoldenReport:
    """Compare what the engine said of its tokens with what a session says of them.

    Args:
        said: The engine's answers.
        scores: The session's of each (``worker.serve``).

    Raises:
        QualityError: The engine was asked something else: its template or tokenizer differs.
    """
    recorded, measured, agreed = [], [], []
    for question, answer, score in zip(QUESTIONS, said["answers"], scores, strict=True):
        if answer["prompt_tokens"] != score["prompt_tokens"]:
            raise QualityError(
                f"TensorRT Edge-LLM makes {answer['prompt_tokens']} tokens of {question!r}, "
                f"edgekit {score['prompt_tokens']}: another template or tokenizer",
                _REMEDY,
            )
        recorded.append(np.asarray(score["log_probability_nats"]))
        measured.append(np.asarray(answer["log_probability_nats"], np.float64))
        clear = np.asarray(score["top1_margin_nats"]) >= ENGINE_LIMITS.margin_nats
        same = np.asarray(score["top1_ids"]) == np.asarray(answer["token_ids"])
        agreed.append(same[clear])
    tokens = sum(len(answer["token_ids"]) for answer in said["answers"])
    return compare_scores(recorded, measured, agreed, ENGINE_LIMITS, tokens=tokens)
