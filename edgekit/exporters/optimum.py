"""Optimum, run in the Python it is installed in: it cannot share edgekit's environment.

optimum-onnx pins transformers < 4.58 and with it huggingface-hub < 1. The other interpreter gets a
folder and gives a folder; no code of the checkpoint runs and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import GraphError, MissingInterpreterError
from edgekit.progress import Progress

VARIABLE = "EDGEKIT_OPTIMUM_PYTHON"
EXPORT_OPSET = 18
"""What the exporter writes best; the graph is converted to edgekit's opset afterwards."""
TAIL_LINES = 6
"""Last lines of what a failed export said that its error repeats."""
NOT_INSTALLED = 3
"""Exit code of :data:`_PROBE` where a package is missing."""

_PROBE = f"""
import json, sys
from importlib.metadata import version
try:
    import onnx, onnxruntime, optimum.exporters.onnx, torch, transformers
    tools = ("optimum", "optimum-onnx", "torch", "transformers")
    tools = {{name: version(name) for name in tools}}
except ImportError as error:
    print(error)
    sys.exit({NOT_INSTALLED})
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
keys = ("rope_theta", "partial_rotary_factor")
print(json.dumps({{"tools": tools, "config": {{k: getattr(config, k, None) for k in keys}}}}))
"""
_REMEDY = f"Make an environment with scripts/optimum.sh DIR, and name it: {VARIABLE}=DIR/bin/python"


@dataclass(frozen=True, slots=True)
class Optimum:
    """An interpreter that has Optimum.

    Attributes:
        python: The interpreter.
        threads: Threads it may use.
    """

    python: Path
    threads: int = 2

    def installed_version(self) -> str:
        """Return the version of optimum-onnx, without importing it.

        Raises:
            MissingInterpreterError: It is not installed there.
        """
        code = "from importlib.metadata import version; print(version('optimum-onnx'))"
        result = self._run((str(self.python), "-c", code), Path.cwd(), None)
        if result.code:
            raise MissingInterpreterError(f"{self.python} lacks Optimum: {result.last}", _REMEDY)
        return result.last

    def check(self, staged: Path, config: Mapping[str, Any]) -> dict[str, str]:
        """Check that the interpreter has Optimum and reads the configuration as it is meant.

        Args:
            staged: The folder to export.
            config: Its ``config.json`` as it was written.

        Returns:
            Versions of what makes the graph.

        Raises:
            MissingInterpreterError: A package is missing.
            GraphError: Its transformers does not know the model, or reads another rotary base.
        """
        command = (str(self.python), "-c", _PROBE, str(staged))
        result = self._run(command, staged, None)
        if result.code == NOT_INSTALLED:
            raise MissingInterpreterError(f"{self.python} lacks Optimum: {result.last}", _REMEDY)
        if result.code:
            raise GraphError(f"Optimum's Python cannot read the model: {result.said}")
        try:
            found = json.loads(result.last)
            tools, read = dict(found["tools"]), dict(found["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise MissingInterpreterError(
                f"{self.python} does not answer as a Python with Optimum: {result.said}", _REMEDY
            ) from error
        for key, value in read.items():
            if config.get(key) not in (None, value):
                raise GraphError(
                    f"transformers {tools.get('transformers')} reads {key} {value!r} from a "
                    f"config.json that says {config[key]!r}",
                    "The exported graph would compute another model: this family is not supported",
                )
        return {name: str(version) for name, version in tools.items()}

    def export(self, staged: Path, out: Path, progress: Progress) -> Path:
        """Export a staged checkpoint; returns the float32 graph, its weights beside it.

        Raises:
            GraphError: The export fails; the message ends with what it said last.
        """
        command = (
            str(self.python), "-m", "optimum.exporters.onnx", "--model", str(staged),
            "--task", "text-generation-with-past", "--library-name", "transformers",
            "--opset", str(EXPORT_OPSET), "--dtype", "fp32", "--device", "cpu", str(out),
        )  # fmt: skip
        result = self._run(command, staged, progress)
        graph = out / "model.onnx"
        if result.code or not graph.is_file():
            raise GraphError(
                f"Optimum could not export the model (exit code {result.code}): {result.said}"
            )
        return graph

    def _run(self, command: Sequence[str], folder: Path, progress: Progress | None) -> _Result:
        """Run a command, what it says going to ``progress``; it ends when edgekit does."""
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise MissingInterpreterError(
                f"cannot run {self.python}: {error.strerror}", _REMEDY
            ) from error
        with process:
            try:
                for line in process.stdout or ():
                    if text := line.strip():
                        tail.append(text)
                        if progress is not None:
                            progress.advance(0, text[:80])
            except BaseException:
                process.kill()
                raise
        return _Result(process.returncode, tuple(tail))

    def _environment(self) -> dict[str, str]:
        """Return the environment without what belongs to this Python, and off the hub."""
        own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        kept = {key: value for key, value in os.environ.items() if key not in own}
        return {
            **kept,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(self.threads),
            # Weights outside the graph whatever their size, so that they can be mapped.
            "FORCE_ONNX_EXTERNAL_DATA": "1",
        }


@dataclass(frozen=True, slots=True)
class _Result:
    """How a command ended.

    Attributes:
        code: Its exit code.
        tail: The last lines it printed.
    """

    code: int
    tail: tuple[str, ...]

    @property
    def last(self) -> str:
        """The last line."""
        return self.tail[-1] if self.tail else ""

    @property
    def said(self) -> str:
        """The last lines, as one."""
        return " | ".join(self.tail) or "it said nothing"


def find_optimum(python: Path | None, threads: int) -> Optimum:
    """Return the interpreter to use: the one given, or the one the environment names.

    Raises:
        MissingInterpreterError: None is named, or the file is not there.
    """
    named = python or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is None:
        raise MissingInterpreterError(
            "--exporter optimum needs a Python that has Optimum; none is named", _REMEDY
        )
    found = shutil.which(named.expanduser())
    if found is None:
        raise MissingInterpreterError(f"{named} is not an interpreter", _REMEDY)
    return Optimum(Path(found).absolute(), threads)
