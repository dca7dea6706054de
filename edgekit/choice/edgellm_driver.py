"""Runs NVIDIA's TensorRT Edge-LLM in the environment it is installed in, which has no edgekit.

Started as a file by that environment's Python, standard library and ``tensorrt-edgellm`` only. It
reads a request (JSON) from stdin and answers in lines of JSON as :mod:`edgekit.worker_process`
says. The API is that of 0.11 (``experimental.server``: ``LLM``, ``SamplingParams``).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve one request and end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print goes to stderr

    def say(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    request = json.load(sys.stdin)
    try:
        say({"result": serve(request, lambda name: say({"phase": name}))})
    except Exception as error:  # noqa: BLE001 - its exceptions share no base; all is told to the one who asked
        said = (str(error).strip().splitlines() or [""])[0]
        message = f"TensorRT Edge-LLM fails: {type(error).__name__}: {said}"
        say({"error": {"kind": "EngineError", "message": message, "remedy": request["remedy"]}})


def serve(request: dict[str, Any], phase: Callable[[str], None]) -> dict[str, Any]:
    """Build or load the engine, answer the gate's questions and time the work.

    Args:
        request: ``model`` and ``cache_dir`` (folders), ``max_input_len``,
            ``max_kv_cache_capacity``, ``questions`` (lists of messages), ``gate_tokens``, ``texts``
            (one a context), ``answer_tokens``, ``rounds``.
        phase: Called with what begins.
    """
    server: Any = importlib.import_module("experimental.server")
    phase("build")
    start = time.perf_counter()
    llm = server.LLM(
        model=request["model"],
        cache_dir=request["cache_dir"],
        max_input_len=request["max_input_len"],
        max_kv_cache_capacity=request["max_kv_cache_capacity"],
    )
    load_s = time.perf_counter() - start
    greedy = {"temperature": 0, "enable_thinking": True, "reuse_context": False}
    phase("gate")
    params = server.SamplingParams(max_tokens=request["gate_tokens"], num_logprobs=1, **greedy)
    answers = [describe(llm.chat(messages, params)) for messages in request["questions"]]
    phase("speed")
    params = server.SamplingParams(max_tokens=request["answer_tokens"], **greedy)
    rows = []
    for text in request["texts"]:
        messages = [{"role": "user", "content": text}]
        timed = [time_answer(llm, messages, params) for _ in range(request["rounds"] + 1)][1:]
        rows.append({key: statistics.median(row[key] for row in timed) for key in timed[0]})
    llm.close()
    return {
        "version": version("tensorrt-edgellm"),
        "load_s": round(load_s, 3),
        "answers": answers,
        "rows": rows,
        "resident_bytes": peak_resident_bytes(),
    }


def peak_resident_bytes() -> int:
    """Return the most memory this process had resident; getrusage(2) counts who started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def describe(output: Any) -> dict[str, Any]:
    """Return an answer's tokens, and the log-probability that the engine gave each."""
    chosen = []
    for token, entries in zip(output.token_ids, output.logprobs, strict=False):
        chosen += [entry.logprob for entry in entries if entry.token_id == token][:1]
    return {
        "prompt_tokens": output.prompt_tokens,
        "token_ids": list(output.token_ids),
        "log_probability_nats": chosen,
    }


def time_answer(llm: Any, messages: list[dict[str, str]], params: Any) -> dict[str, float]:
    """Return the rates of one streamed answer."""
    start, marks, tokens, prompt = time.perf_counter(), [], 0, 0
    for delta in llm.generate_stream(messages, params):
        if delta.token_ids:
            marks.append((time.perf_counter(), len(delta.token_ids)))
            tokens += len(delta.token_ids)
        prompt = delta.prompt_tokens or prompt
    if len(marks) < 2 or not prompt:
        raise RuntimeError(f"an answer of {tokens} tokens to {prompt} cannot be timed")
    first, last = marks[0], marks[-1]
    return {
        "prompt_tokens": prompt,
        "prefill_tokens_per_s": prompt / (first[0] - start),
        "decode_tokens_per_s": (tokens - first[1]) / (last[0] - first[0]),
    }


if __name__ == "__main__":
    main()
