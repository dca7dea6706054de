r"""Decode and prefill speed on the CPU: edgekit bundles, onnxruntime-genai, llama.cpp.

A round runs every model once, each in a fresh process, in an order that turns by one each round;
figures are medians over the rounds with the smallest and largest beside them. llama.cpp is
measured by its own llama-bench (``-p``, ``-n``, ``-d``), which does not count the choice of the
token; the others do.

    python tests/bench/bench_decode.py --bundle DIR --genai DIR --gguf model-Q4_0.gguf \\
        --genai-python G/bin/python --llama-cpp SOURCE --threads 2 --rounds 5

genai folders and GGUF files are what bench_build.py's commands make (README.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import report
from measure import MIB, BenchError, Usage, run_checked, wait_until_calm

HERE = Path(__file__).resolve().parent


@dataclass(slots=True)
class Candidate:
    """One model on one engine, and its figures so far."""

    name: str
    command: tuple[str, ...]
    parse: Callable[[str], dict[str, float]]
    env: Mapping[str, str] = field(default_factory=dict)
    figures: list[dict[str, float]] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    def run(self, log: Path) -> None:
        """Measure once.

        Raises:
            BenchError: The engine failed or said nothing that can be read.
        """
        self.usages.append(run_checked(self.command, log=log, env=self.env))
        figures = self.parse(log.read_text(errors="replace"))
        if not figures:
            raise BenchError(f"{self.name} reported no figures (see {log})")
        self.figures.append(figures)


def worker_candidate(
    kind: str, python: Path, model: Path, options: argparse.Namespace
) -> Candidate:
    """Return a model that decode_of.py measures, in the environment of ``python``."""
    command = [str(python), str(HERE / "decode_of.py"), kind, str(model)]
    command += ["--threads", str(options.threads), "--tokens", str(options.tokens)]
    command += ["--prompts", options.prompts, "--contexts", options.contexts]

    def parse(text: str) -> dict[str, float]:
        lines = [line for line in text.splitlines() if line.startswith("{")]
        figures: dict[str, float] = json.loads(lines[-1]) if lines else {}
        return figures

    label = kind.replace("bundle", "edgekit")
    return Candidate(f"{label} {model.name}", tuple(command), parse)


def llama_candidate(
    llama: peers.LlamaCpp, model: Path, options: argparse.Namespace
) -> list[Candidate]:
    """Return llama-bench on a GGUF file: one call for prefill, one for decode at each depth."""
    tool = [str(llama.binaries / "llama-bench"), "-m", str(model), "-o", "json", "-r", "1"]
    tool += ["-t", str(options.threads), "-ngl", "0"]
    tool += ["-p", options.prompts, "-n", "0"]
    prefill = Candidate(f"llama.cpp {model.stem}", tuple(tool), parse_llama_bench)
    tool = [*tool[:-4], "-p", "0", "-n", str(options.tokens), "-d", options.contexts]
    decode = Candidate(f"llama.cpp {model.stem}", tuple(tool), parse_llama_bench)
    return [prefill, decode]


def parse_llama_bench(text: str) -> dict[str, float]:
    """Return ``pp<n>`` and ``tg@<n>`` from llama-bench's JSON, whatever it printed before."""
    start, end = text.find("[\n"), text.rfind("]")
    figures = {}
    for test in json.loads(text[start : end + 1]) if start >= 0 else []:
        name = f"tg@{test['n_depth']}" if test["n_gen"] else f"pp{test['n_prompt']}"
        figures[name] = float(test["avg_ts"])
    return figures


def candidates(options: argparse.Namespace) -> list[Candidate]:
    """Return every model the command line names.

    Raises:
        BenchError: A peer's model is named without the peer.
    """
    here = Path(sys.executable)
    kinds = [f"bundle-{dialect}" for dialect in options.dialect] or ["bundle"]
    found = [worker_candidate(k, here, folder, options) for folder in options.bundle for k in kinds]
    genai, llama = peers.genai_from(options), peers.llama_from(options)
    for folder in options.genai:
        if genai is None:
            raise BenchError("--genai needs --genai-python")
        found.append(worker_candidate("genai", genai.python, folder, options))
    for model in options.gguf:
        if llama is None:
            raise BenchError("--gguf needs --llama-cpp")
        found += llama_candidate(llama, model, options)
    if not found:
        raise BenchError("nothing to measure: name a --bundle, --genai or --gguf")
    return found


def summarize(found: list[Candidate]) -> list[dict[str, Any]]:
    """Return one row a model: median, least and most of each figure."""
    rows: dict[str, dict[str, Any]] = {}
    for candidate in found:
        row = rows.setdefault(candidate.name, {"name": candidate.name})
        for name in candidate.figures[0]:
            values = [figures[name] for figures in candidate.figures]
            row[name] = {
                "tokens_per_s": report.median(values),
                "least": min(values),
                "most": max(values),
            }
        peak = max(usage.peak_resident_bytes for usage in candidate.usages)
        others = max(usage.other_cores for usage in candidate.usages)
        row["other_cores"] = max(others, row.get("other_cores", 0))
        row["peak_resident_bytes"] = max(peak, row.get("peak_resident_bytes", 0))
    return list(rows.values())


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    names = [name for name in rows[0] if name.startswith(("pp", "tg@"))]
    lines = []
    for row in rows:
        cells = [row["name"]]
        for name in names:
            figure = row[name]
            span = f"{figure['least']:.1f}-{figure['most']:.1f}"
            cells.append(f"{figure['tokens_per_s']:.1f} ({span})")
        cells += [f"{row['peak_resident_bytes'] / MIB:.0f}", f"{row['other_cores']:.2f}"]
        lines.append(cells)
    header = ["tokens/s: median (span)", *names, "RSS MiB", "others' cores"]
    return report.table(header, lines)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--genai", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--gguf", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument(
        "--dialect",
        choices=("standard", "ort"),
        action="append",
        default=[],
        help="Measure this graph of each bundle, not the one edgekit takes. May be repeated.",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", default="128,512")
    parser.add_argument("--contexts", default="128,2048")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--log", type=Path, default=Path("bench_decode.log"))
    parser.add_argument("--json", type=Path)
    report.add_calm_arguments(parser)
    peers.add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Run the rounds and print the table."""
    options = parse_arguments()
    state = report.machine()
    try:
        found = candidates(options)
        for number in range(options.rounds):
            turn = number % len(found)
            for candidate in found[turn:] + found[:turn]:
                if options.calm:
                    wait_until_calm(options.calm, options.calm_timeout_s)
                candidate.run(options.log)
                text = ", ".join(f"{k} {v:.1f}" for k, v in candidate.figures[-1].items())
                print(f"round {number + 1}: {candidate.name}: {text}", flush=True)
    except BenchError as error:
        print(f"bench_decode: {error}", file=sys.stderr)
        return 1
    rows = summarize(found)
    print(render(rows))
    if options.json:
        report.write_json(
            options.json, {"machine": state, "threads": options.threads, "rows": rows}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
