r"""Measure the compile check: wall seconds and memory of the whole process tree, bundle by bundle.

Each bundle's target graph is compiled as `edgekit build` does it, and with ``--full`` also whole.
The builder must be installed (extra ``trt-check``); the bundles need not be checked or good.

    python tests/bench/make_checkpoint.py qwen2-7b /tmp/bench/7b
    edgekit build /tmp/bench/7b --target orin --recipe w4a16-rtn-g128 --no-check \
        --no-compile-check --out /tmp/bench/7b.bundle
    python tests/bench/bench_compile.py /tmp/bench/7b.bundle > compile.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import run_checked

from edgekit.bundle.reader import open_bundle
from edgekit.pipeline.compiled import plan_engines
from edgekit.targets import TARGETS
from edgekit.trt.compile_check import CheckInput, run_compile_check
from edgekit.trt.module import find_builder


def compile_one(folder: Path, *, full: bool | None) -> dict[str, Any]:
    """Compile one bundle's target graph in this process's child; returns the findings."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    (plan,) = plan_engines(TARGETS[manifest.target["name"]], manifest.graphs, **manifest.limits)
    graph = bundle.path / bundle.graph("target").path
    return run_compile_check(CheckInput(graph, plan, manifest.tensors, full), find_builder())


def measure(folder: Path, mode: str) -> dict[str, Any]:
    """Compile one bundle in a process tree of its own; returns its findings and what it took."""
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "log"
        command = [sys.executable, __file__, str(folder), "--worker", mode]
        usage = run_checked(command, log=log)
        found = json.loads(log.read_text().splitlines()[-1])
    return {
        "bundle": folder.name,
        "mode": mode,
        "wall_s": round(usage.wall_s, 2),
        "cpu_s": round(usage.cpu_s, 2),
        "peak_anonymous_bytes": usage.peak_anonymous_bytes,
        "peak_resident_bytes": usage.peak_resident_bytes,
        "other_cores": round(usage.other_cores, 2),
        **{key: found[key] for key in ("builder", "version", "layers", "layers_compiled")},
        **{key: found[key] for key in ("stored_bytes", "engine_weights_bytes", "attention")},
    }


def main() -> int:
    """Measure every bundle and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--full", action="store_true", help="compile each whole, too")
    parser.add_argument("--worker", choices=["auto", "full"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        full = True if options.worker == "full" else None
        print(json.dumps(compile_one(options.bundles[0], full=full)))
        return 0
    modes = ["auto", "full"] if options.full else ["auto"]
    rows = [measure(folder, mode) for folder in options.bundles for mode in modes]
    print(json.dumps(rows, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
