r"""Time and memory of building the same checkpoint with edgekit and with its peers, side by side.

Every candidate runs once a round, in an order that turns by one each round, so that a machine
that slows down slows all alike; figures are medians over the rounds. Two baselines do no work:
``copy`` reads the checkpoint and writes as many bytes; ``read+write`` reads it and writes as
many bytes as the first edgekit bundle has (both buffered, without fsync, as the peers write).

    python tests/bench/bench_build.py CKPT --work /tmp/bench --genai-python G/bin/python \\
        --llama-cpp DIR --recipe w4a16-g128 --recipe w4a16-g64 --rounds 3

Memory is anonymous (measure.py). The checkpoint is read once before the first round, so nobody
pays for a cold page cache, and the disk is synced between runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peers
import report
from measure import MIB, BenchError, Usage, run_checked, wait_until_calm

EDGEKIT_COMMAND = (
    "{python} -m edgekit build {checkpoint} --target cpu --recipe {recipe} --out {out}"
)
GENAI_VARIANTS = {"default": [], "rtn": ["algo_config=rtn"], "k_quant": ["algo_config=k_quant"]}
BLOCK_BYTES = 16 * MIB
BASELINE_CODE = """
import sys
out, size, block, *sources = sys.argv[1:]
left = int(size)
with open(out, "wb", buffering=0) as sink:
    for name in sources:
        with open(name, "rb", buffering=0) as source:
            while chunk := source.read(int(block)):
                view = memoryview(chunk)[:left]
                while view:
                    written = sink.write(view)
                    left -= written
                    view = view[written:]
"""


@dataclass(slots=True)
class Candidate:
    """One way to build, and what it took so far.

    Attributes:
        name: Row of the table.
        steps: Called with the output folder before each run.
        env: Added to the environment.
        runs: One list of usages, one a step, for each round.
        output_bytes: Bytes of the last result.
    """

    name: str
    steps: Callable[[Path], Sequence[peers.Step]]
    env: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Usage]] = field(default_factory=list)
    output_bytes: int = 0

    def run(self, folder: Path) -> None:
        """Build once into ``folder``, emptied before and after.

        Raises:
            BenchError: A step failed.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        os.sync()
        usages = {}
        for step in self.steps(folder):
            log = folder.with_suffix(".log")
            usages[step.name] = run_checked(step.command, log=log, env=self.env)
        self.runs.append(usages)
        self.output_bytes = _result_bytes(folder)
        shutil.rmtree(folder)

    def row(self) -> dict[str, Any]:
        """Return the medians, in seconds and bytes, and the steps of which they are made."""
        wall = [sum(u.wall_s for u in run.values()) for run in self.runs]
        cpu = [sum(u.cpu_s for u in run.values()) for run in self.runs]
        anonymous = [max(u.peak_anonymous_bytes for u in run.values()) for run in self.runs]
        resident = [max(u.peak_resident_bytes for u in run.values()) for run in self.runs]
        steps = {name: [run[name].wall_s for run in self.runs] for name in self.runs[0]}
        return {
            "name": self.name,
            "wall_s": report.median(wall),
            "cpu_s": report.median(cpu),
            "peak_anonymous_bytes": report.median(anonymous),
            "peak_resident_bytes": report.median(resident),
            "output_bytes": self.output_bytes,
            "other_cores": max(u.other_cores for run in self.runs for u in run.values()),
            "wall_s_each": wall,
            "step_wall_s": {name: report.median(values) for name, values in steps.items()},
        }


def _result_bytes(folder: Path) -> int:
    """Return the bytes of what was asked for: an intermediate bf16 GGUF is not part of it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if not path.name.startswith("intermediate"))


def edgekit_candidate(checkpoint: Path, recipe: str, command: str) -> Candidate:
    """Return an edgekit build by ``recipe``; ``command`` is a template (``--edgekit-command``)."""

    def steps(folder: Path) -> Sequence[peers.Step]:
        values = {"python": sys.executable, "checkpoint": checkpoint, "recipe": recipe}
        words = [word.format(**values, out=folder / "bundle") for word in shlex.split(command)]
        return (peers.Step("build", tuple(words)),)

    return Candidate(f"edgekit {recipe}", steps)


def genai_candidate(genai: peers.Genai, checkpoint: Path, variant: str) -> Candidate:
    """Return an int4 CPU build by onnxruntime-genai's builder."""
    options = GENAI_VARIANTS[variant]
    return Candidate(
        f"genai int4 {variant}",
        lambda folder: genai.build(checkpoint, folder / "model", options),
    )


def llama_candidate(llama: peers.LlamaCpp, checkpoint: Path, kind: str, threads: int) -> Candidate:
    """Return llama.cpp's two steps: convert to bf16 GGUF, then quantize."""

    def steps(folder: Path) -> Sequence[peers.Step]:
        middle = folder / "intermediate.gguf"
        convert = llama.convert(checkpoint, middle)
        return (convert, llama.quantize(middle, folder / "model.gguf", kind, threads))

    return Candidate(f"llama.cpp convert + {kind}", steps, env=llama.env)


def baseline_candidate(name: str, checkpoint: Path, size: Callable[[], int]) -> Candidate:
    """Return a program that only reads the checkpoint's weights and writes ``size()`` bytes."""
    sources = [str(path) for path in sorted(checkpoint.glob("*.safetensors"))]

    def steps(folder: Path) -> Sequence[peers.Step]:
        numbers = [str(size()), str(BLOCK_BYTES)]
        command = [sys.executable, "-c", BASELINE_CODE, str(folder / "copy"), *numbers, *sources]
        return (peers.Step("copy", tuple(command)),)

    return Candidate(name, steps)


def candidates(options: argparse.Namespace) -> list[Candidate]:
    """Return everything the command line asks to build."""
    checkpoint: Path = options.checkpoint
    ours = [
        edgekit_candidate(checkpoint, recipe, options.edgekit_command) for recipe in options.recipe
    ]
    found = list(ours)
    genai, llama = peers.genai_from(options), peers.llama_from(options)
    if genai:
        found += [genai_candidate(genai, checkpoint, name) for name in options.genai_variant]
    if llama:
        found += [
            llama_candidate(llama, checkpoint, kind, options.threads) for kind in options.gguf
        ]
    stored = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    found.append(baseline_candidate("copy", checkpoint, lambda: stored))
    if ours:
        found.append(
            baseline_candidate("read+write", checkpoint, lambda: ours[0].output_bytes or stored)
        )
    return found


def run_rounds(found: list[Candidate], options: argparse.Namespace) -> None:
    """Run every candidate ``--rounds`` times, in a turning order."""
    for number in range(options.rounds):
        turn = number % len(found)
        for candidate in found[turn:] + found[:turn]:
            if options.calm:
                wait_until_calm(options.calm, options.calm_timeout_s)
            candidate.run(options.work / "out")
            usage = candidate.runs[-1].values()
            print(f"round {number + 1}: {candidate.name}: {sum(u.wall_s for u in usage):.2f} s")


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table; ratios are against the first row."""
    header = ["build", "wall s", "ratio", "cpu s", "RssAnon MiB", "RSS MiB", "output MB"]
    header.append("others' cores")
    lines = [
        [
            row["name"],
            f"{row['wall_s']:.2f}",
            f"{row['wall_s'] / rows[0]['wall_s']:.2f}",
            f"{row['cpu_s']:.2f}",
            f"{row['peak_anonymous_bytes'] / MIB:.0f}",
            f"{row['peak_resident_bytes'] / MIB:.0f}",
            f"{row['output_bytes'] / 1e6:.0f}",
            f"{row['other_cores']:.2f}",
        ]
        for row in rows
    ]
    return report.table(header, lines)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, emptied")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--recipe", action="append", default=[], help="edgekit recipe; repeatable")
    parser.add_argument("--edgekit-command", default=EDGEKIT_COMMAND, help="template")
    parser.add_argument(
        "--genai-variant", nargs="*", default=["default", "rtn"], choices=sorted(GENAI_VARIANTS)
    )
    parser.add_argument("--gguf", nargs="*", default=["Q4_0", "Q4_K_M"])
    parser.add_argument("--json", type=Path)
    report.add_calm_arguments(parser)
    peers.add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Run the benchmark and print its table."""
    options = parse_arguments()
    state = report.machine()
    try:
        found = candidates(options)
        for path in options.checkpoint.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:  # warms the page cache
                while file.read(BLOCK_BYTES):
                    pass
        run_rounds(found, options)
    except BenchError as error:
        print(f"bench_build: {error}", file=sys.stderr)
        return 1
    rows = [candidate.row() for candidate in found]
    print(render(rows))
    if options.json:
        document = {"machine": state, "checkpoint": options.checkpoint.name, "rows": rows}
        report.write_json(options.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
