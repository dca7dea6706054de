"""How the peers are called: onnxruntime-genai's builder, and llama.cpp's converter and tools.

Nothing of theirs is here: they are installed by the person who runs the benchmark (README.md)
and named on the command line. A peer that is not named is left out, never replaced.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import BenchError

HERE = Path(__file__).resolve().parent
LLAMA_TOOLS = ("llama-quantize", "llama-bench")


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a build; steps of one build run one after the other."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Genai:
    """onnxruntime-genai in its own environment.

    Attributes:
        python: The interpreter of an environment with onnxruntime-genai, torch, transformers.
    """

    python: Path

    def build(
        self, checkpoint: Path, out: Path, options: Sequence[str], precision: str = "int4"
    ) -> tuple[Step, ...]:
        """Return the commands that write an int4 CPU model into ``out``."""
        command = [str(self.python), "-m", "onnxruntime_genai.models.builder"]
        command += ["-m", str(checkpoint), "-o", str(out), "-p", precision, "-e", "cpu"]
        command += ["-c", str(out.with_suffix(".cache"))]
        if options:
            command += ["--extra_options", *options]
        return (Step("build", tuple(command)),)


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """llama.cpp, built following its own documentation.

    Attributes:
        source: Its source tree, for the converter and ``gguf-py``.
        binaries: Folder of ``llama-quantize`` and ``llama-bench``.
        python: Interpreter with the converter's requirements and, for logits,
            llama-cpp-python.
    """

    source: Path
    binaries: Path
    python: Path

    def convert(self, checkpoint: Path, out: Path) -> Step:
        """Return the command that writes a bf16 GGUF file."""
        script = HERE / "convert_gguf.py"
        command = (str(self.python), str(script), str(self.source), str(checkpoint))
        return Step("convert", (*command, "--outtype", "bf16", "--outfile", str(out)))

    def quantize(self, source: Path, out: Path, kind: str, threads: int) -> Step:
        """Return the command that quantizes a bf16 GGUF file to ``kind`` (``Q4_0``, ...)."""
        tool = str(self.binaries / "llama-quantize")
        return Step(f"quantize {kind}", (tool, str(source), str(out), kind, str(threads)))

    @property
    def env(self) -> dict[str, str]:
        """Environment of its Python scripts: its own ``gguf``, and its own library."""
        return {
            "PYTHONPATH": str(self.source / "gguf-py"),
            "LLAMA_CPP_LIB_PATH": os.environ.get("LLAMA_CPP_LIB_PATH", str(self.binaries)),
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the peers are."""
    group = parser.add_argument_group("peers (README.md says how to install them)")
    group.add_argument("--genai-python", type=Path, help="python with onnxruntime-genai")
    group.add_argument("--llama-cpp", type=Path, metavar="DIR", help="llama.cpp source tree")
    group.add_argument(
        "--llama-bin", type=Path, metavar="DIR", help="its binaries (default: DIR/build/bin)"
    )
    group.add_argument(
        "--llama-python",
        type=Path,
        default=Path(sys.executable),
        help="python with the converter's requirements and llama-cpp-python",
    )


def genai_from(options: argparse.Namespace) -> Genai | None:
    """Return the genai peer the command line names.

    Raises:
        BenchError: The interpreter is not there.
    """
    python: Path | None = options.genai_python
    if python is None:
        return None
    return Genai(_existing(python, "--genai-python"))


def llama_from(options: argparse.Namespace) -> LlamaCpp | None:
    """Return the llama.cpp peer the command line names.

    Raises:
        BenchError: Its converter or one of its tools is not where the options say.
    """
    source: Path | None = options.llama_cpp
    if source is None:
        return None
    binaries: Path = options.llama_bin or source / "build" / "bin"
    _existing(source / "convert_hf_to_gguf.py", "--llama-cpp")
    for tool in LLAMA_TOOLS:
        _existing(binaries / tool, "--llama-bin")
    python = _existing(options.llama_python, "--llama-python")
    return LlamaCpp(source.resolve(), binaries.resolve(), python)


def _existing(path: Path, option: str) -> Path:
    # Not resolved: an environment's python is a link, and only its own path finds its packages.
    if not path.exists():
        raise BenchError(f"{option}: {path} does not exist (README.md says how to install it)")
    return path.absolute()
