r"""Quality against bits: edgekit bundles and the peers' 4- and 8-bit models on the same tokens.

The reference is the bf16 checkpoint computed in float32 (transformers). Every model gets the same
token ids, in windows that each start with an empty cache, and is run by its own engine as a user
would run it: what the engine's kernels round counts too. ``rtn-128`` is plain round-to-nearest
(largest absolute value, group 128) computed in float32: the line to beat.

    python tests/bench/bench_quality.py examples/edgekit-r1-tiny --work /tmp/quality \\
        --bundle tiny.w4a16-g64=BUNDLE --genai-python G/bin/python --llama-cpp DIR \\
        --json quality.json --plot quality.png

Without peers' options their rows are left out; ``--merge F.json`` takes rows of an earlier run
of the same checkpoint and text (a mismatch is an error). Several result files are drawn side by
side by plot_quality.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peers
import plot_quality
import report
from divergence import compare
from measure import BenchError, run_checked

HERE = Path(__file__).resolve().parent
TEXT = HERE.parent / "data" / "shakespeare_dev.txt"
WINDOW_TOKENS = 512
TOTAL_TOKENS = 8192
PLAIN_RTN = "rtn-128"
GENAI_VARIANTS = {
    "genai default b32": ("block_size=32",),
    "genai default b128": ("block_size=128",),
    "genai rtn b32": ("algo_config=rtn", "block_size=32"),
    "genai rtn b128": ("algo_config=rtn", "block_size=128"),
    "genai k_quant b32": ("algo_config=k_quant", "block_size=32"),
    "genai k_quant b128": ("algo_config=k_quant", "block_size=128"),
}
GGUF_KINDS = ("Q4_0", "Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model to measure.

    Attributes:
        name: Row of the table.
        family: Who made it: ``edgekit``, ``genai``, ``llama.cpp``, ``baseline``, ``check``.
        kind: What logits_of.py calls it.
        path: The model.
        python: Interpreter that can run it.
        env: Added to the environment.
    """

    name: str
    family: str
    kind: str
    path: Path
    python: Path = Path(sys.executable)
    env: Mapping[str, str] = field(default_factory=dict)


class Quality:
    """Measures entries against one checkpoint on one text.

    Args:
        checkpoint: The unquantized model.
        text: What the windows are cut from.
        work: Scratch folder; models and logits are left there.
        threads: Threads of every engine.
    """

    def __init__(self, checkpoint: Path, text: Path, work: Path, threads: int) -> None:
        self._work = work
        self._threads = threads
        work.mkdir(parents=True, exist_ok=True)
        self.windows = token_windows(checkpoint, text)
        np.save(work / "windows.npy", self.windows)
        reference = Entry("reference", "check", "transformers", checkpoint)
        self._reference, _ = self._logits(reference)

    def measure(self, entry: Entry) -> dict[str, Any]:
        """Return the row of one entry.

        Raises:
            BenchError: Its engine failed; the message ends with what it said.
        """
        logits, stored = self._logits(entry)
        result = asdict(compare(self._reference, logits, self.windows))
        row = {"name": entry.name, "family": entry.family, **stored, **result}
        print(
            f"{entry.name}: {row['bits_per_linear_weight']:.3f} bits, "
            f"KL {row['kl_divergence_nats']:.4f} +- {row['kl_standard_error_nats']:.4f}, "
            f"top-1 {100 * row['top1_agreement']:.1f} %, perplexity {row['perplexity']:.2f}",
            flush=True,
        )
        return row

    def _logits(self, entry: Entry) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        out = self._work / "logits.npy"
        if entry.name == "reference":
            out = self._work / "reference.npy"
        command = [str(entry.python), str(HERE / "logits_of.py"), entry.kind, str(entry.path)]
        command += [str(self._work / "windows.npy"), str(out), "--threads", str(self._threads)]
        run_checked(command, log=self._work / "logits.log", env=entry.env)
        stored: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
        return np.load(out, mmap_mode="r"), stored


def token_windows(checkpoint: Path, text: Path) -> npt.NDArray[np.int64]:
    """Return the first tokens of ``text``, int64 [16, 512], without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    if len(ids) < TOTAL_TOKENS:
        raise BenchError(f"{text} has {len(ids)} tokens, {TOTAL_TOKENS} are needed")
    return np.array(ids[:TOTAL_TOKENS], np.int64).reshape(-1, WINDOW_TOKENS)


def genai_entries(
    genai: peers.Genai, checkpoint: Path, work: Path, failures: dict[str, str]
) -> list[Entry]:
    """Build every genai variant, and float32 as a check of the method.

    A variant that genai cannot build for these shapes is no row; why goes into ``failures``.
    """
    wanted: list[tuple[str, str, str, tuple[str, ...]]] = [("genai float32", "check", "fp32", ())]
    wanted += [(name, "genai", "int4", options) for name, options in GENAI_VARIANTS.items()]
    entries = []
    for name, family, precision, options in wanted:
        out = work / name.replace(" ", "-")
        if not (out / "model.onnx").exists():
            try:
                for step in genai.build(checkpoint, out, options, precision):
                    run_checked(step.command, log=out.with_suffix(".log"))
            except BenchError as error:
                failures[name] = str(error)
                print(f"{name}: not built: {error}", file=sys.stderr)
                continue
        entries.append(Entry(name, family, "genai", out, genai.python))
    return entries


def llama_entries(llama: peers.LlamaCpp, checkpoint: Path, work: Path, threads: int) -> list[Entry]:
    """Convert and quantize to every GGUF kind; bf16 is a check of the method."""
    source = work / "model-bf16.gguf"
    steps = [(source, llama.convert(checkpoint, source))]
    entries = [("llama.cpp bf16", "check", source)]
    for kind in GGUF_KINDS:
        out = work / f"model-{kind}.gguf"
        steps.append((out, llama.quantize(source, out, kind, threads)))
        entries.append((f"llama.cpp {kind}", "llama.cpp", out))
    for out, step in steps:
        if not out.exists():
            run_checked(step.command, log=out.with_suffix(".log"), env=llama.env)
    return [
        Entry(name, family, "gguf", out, llama.python, llama.env) for name, family, out in entries
    ]


def all_entries(options: argparse.Namespace, work: Path, failures: dict[str, str]) -> list[Entry]:
    """Return every model the command line asks for; builds the peers'."""
    entries = [Entry(f"plain {PLAIN_RTN}", "baseline", PLAIN_RTN, options.checkpoint)]
    for item in options.bundle:
        name, _, folder = item.rpartition("=")
        entries.append(
            Entry(f"edgekit {name or Path(folder).name}", "edgekit", "bundle", Path(folder))
        )
    genai, llama = peers.genai_from(options), peers.llama_from(options)
    if genai:
        entries += genai_entries(genai, options.checkpoint, work, failures)
    if llama:
        entries += llama_entries(llama, options.checkpoint, work, options.threads)
    return entries


def merged(rows: list[dict[str, Any]], earlier: Path, identity: str) -> list[dict[str, Any]]:
    """Return ``rows`` and those of an earlier run that are not among them.

    Raises:
        BenchError: The earlier run had another checkpoint or text.
    """
    document = json.loads(earlier.read_text())
    if document["identity"] != identity:
        raise BenchError(f"{earlier} is of another checkpoint or other tokens")
    names = {row["name"] for row in rows}
    return rows + [row for row in document["rows"] if row["name"] not in names]


def identify(checkpoint: Path, windows: npt.NDArray[np.int64]) -> str:
    """Return a digest of the checkpoint's weights and of the token ids."""
    digest = hashlib.sha256(windows.tobytes())
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def render(rows: list[dict[str, Any]]) -> str:
    """Return the table, by bits; KL relative to plain round-to-nearest where that was run."""
    plain = {row["name"]: row["kl_divergence_nats"] for row in rows}.get(f"plain {PLAIN_RTN}")
    header = ["model", "bits/weight", "mean KL (nats)", "of plain", "top-1 %", "perplexity"]
    lines = [
        [
            row["name"],
            f"{row['bits_per_linear_weight']:.3f}",
            f"{row['kl_divergence_nats']:.4f}",
            f"{row['kl_divergence_nats'] / plain:.2f}" if plain else "",
            f"{100 * row['top1_agreement']:.1f}",
            f"{row['perplexity']:.2f}",
        ]
        for row in sorted(rows, key=lambda row: float(row["bits_per_linear_weight"]))
    ]
    return report.table(header, lines)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="scratch folder, kept")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="[NAME=]DIR", help="repeatable"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--merge", type=Path, metavar="F.json", help="rows of an earlier run")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, metavar="F.png")
    peers.add_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; print the table, write JSON and plot."""
    options = parse_arguments()
    work = options.work / options.checkpoint.resolve().name
    try:
        quality = Quality(options.checkpoint, options.text, work, options.threads)
        identity = identify(options.checkpoint, quality.windows)
        failures: dict[str, str] = {}
        rows = [quality.measure(entry) for entry in all_entries(options, work, failures)]
        if options.merge:
            rows = merged(rows, options.merge, identity)
    except BenchError as error:
        print(f"bench_quality: {error}", file=sys.stderr)
        return 1
    print(render(rows))
    document = {
        "checkpoint": options.checkpoint.resolve().name,
        "identity": identity,
        "tokens": int(quality.windows.size),
        "window_tokens": WINDOW_TOKENS,
        "machine": report.machine(),
        "failures": failures,
        "rows": rows,
    }
    if options.json:
        report.write_json(options.json, document)
    if options.plot:
        plot_quality.draw([document], options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
