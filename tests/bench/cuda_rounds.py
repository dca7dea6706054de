"""Decode rates on CUDA of this tree, of an earlier one, and of onnxruntime-genai, in turns.

    python tests/bench/cuda_rounds.py BUNDLE --before TREE --genai FOLDER --genai-python PYTHON

Each of ``--rounds`` times, one process after another: the tree of ``--before`` (a checkout; its own
``bench_cuda.py`` and package), this tree with the selection apart, joined, and joined for greedy
steps alone, and genai (``cuda_peers.py``; PYTHON is of an environment that has it, FOLDER its
model). All with CUDA graphs, at the same contexts and batches. Prints one JSON document: of every
contender, context, batch and choice the median, least and most tokens/s of its rounds, and the
ratio to genai's best there (it has graphs on and off, and fails at some). What fails is a row with
its error. ``--provider cpu`` runs it without a GPU and without genai's graphs, for trying it out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).parents[2]
Key = tuple[str, int, int, str]
"""Contender, context, batch, choice."""
TIMEOUT_S = 570


def contenders(options: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the command of each, and what it has more in its environment."""
    sizes = ["--contexts", *options.contexts, "--batches", *options.batches]
    common = ["--variants", "ort", "--captured", "--choices", *options.choices]
    time = ["time", str(options.bundle), *sizes, *common, "--paths", "selected"]
    time += ["--provider", options.provider]
    found = {}
    for name, tree in (("before", options.before), ("now", TREE)):
        if tree:
            script = str(tree / "tests" / "bench" / "bench_cuda.py")
            found[name] = ([sys.executable, script, *time], {"PYTHONPATH": str(tree)})
    if options.genai:
        script = str(Path(__file__).parent / "cuda_peers.py")
        command = [str(options.genai_python), script, "genai", str(options.genai), *sizes]
        found["genai"] = (command, {})
    return found


def run(command: list[str], more: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows that a contender prints; of one that fails, its error."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [{"error": f"ran over {TIMEOUT_S} s"}]
    rows: list[dict[str, Any]] = []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            document = json.loads(line)
            rows += document.get("rows", [document])
    if done.returncode or not rows:
        rows.append({"error": done.stderr[-2000:]})
    return rows


def keyed(name: str, row: dict[str, Any]) -> Key:
    """Return what a row is of: genai's variants hold their choice, ours where they select."""
    if name == "genai":
        variant, _, choice = row["variant"].rpartition(", ")
        return variant, row["context_tokens"], row["batch"], choice
    where = f", {row['select']}" if "select" in row else ""
    return f"{name}{where}", row["context_tokens"], row["batch"], row["choice"]


def summarize(rows: dict[Key, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield one line a key, with its ratio to the best of genai."""
    rates = {key: [row["decode_tokens_per_s"] for row in found] for key, found in rows.items()}
    for key, found in rates.items():
        best = [
            statistics.median(rate)
            for peer, rate in rates.items()
            if peer[0].startswith("genai") and peer[1:] == key[1:]
        ]
        outside = [row["outside_us"] for row in rows[key] if "outside_us" in row]
        median = statistics.median(found)
        yield {
            **dict(zip(("contender", "context_tokens", "batch", "choice"), key, strict=True)),
            "tokens_per_s": median,
            "least": min(found),
            "most": max(found),
            "of_genai": round(median / max(best), 3) if best else None,
            "outside_us": statistics.median(outside) if outside else None,
        }


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--before", type=Path, help="checkout of an earlier tree")
    parser.add_argument("--genai", type=Path, help="genai's model folder")
    parser.add_argument("--genai-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--contexts", nargs="+", default=["512", "4096"])
    parser.add_argument("--batches", nargs="+", default=["1", "8"])
    parser.add_argument("--choices", nargs="+", default=["greedy", "top-k"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    rows, errors = defaultdict[Key, list[dict[str, Any]]](list), []
    for turn in range(options.rounds):
        for name, (command, more) in contenders(options).items():
            for row in run(command, more):
                print(json.dumps({"round": turn, "of": name, **row}), file=sys.stderr, flush=True)
                if "error" in row:
                    errors.append({"round": turn, "of": name, **row})
                else:
                    rows[keyed(name, row)].append(row)
    print(json.dumps({"rows": list(summarize(rows)), "errors": errors}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
