"""What a person with an Orin runs: builds a bundle's engine, checks its answers, times it.

    python tests/hardware/hardware.py BUNDLE --out hardware-report

Writes ``hardware.json`` and ``hardware.md`` to send back, whatever came of it. Exits with 0 where
every step passed, with 1 where something is missing (it is named) or a step failed. What the steps
are and how to read them: docs/hardware.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hardware_steps as steps
import report
from hardware_text import readable

from edgekit.bundle.reader import Bundle, open_bundle
from edgekit.cli.render import StageProgress
from edgekit.contracts.engine_plan import EnginePlan
from edgekit.errors import BundleError, EdgekitError
from edgekit.trt.engine_cache import EngineCache, default_folder

SCHEMA_VERSION = 1
DOCTOR = (sys.executable, "-m", "edgekit", "doctor", "--device", "--json")


class Run:
    """One run and its report.

    Args:
        options: The command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._cache = EngineCache(options.cache or default_folder())
        self.document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "bundle": None if options.bundle is None else str(options.bundle),
            "digest": None,
            "verdict": "",
            "missing": [],
            "doctor": None,
            "steps": {},
            "states": {},
        }

    def run(self) -> bool:
        """Run every step that can be run; returns whether all passed."""
        document = self.document
        document["doctor"] = doctor()
        document["states"]["before"] = steps.describe_state()
        bundle = self._open()
        missing = steps.find_missing(bundle, anywhere=self._options.anywhere)
        document["missing"] += [{"what": m.what, "remedy": m.remedy} for m in missing]
        if document["missing"] or bundle is None:
            document["verdict"] = "not run, something is missing"
            return False
        self._measure(bundle)
        document["states"]["after"] = steps.describe_state()
        failed = [name for name, s in document["steps"].items() if s["status"] != "passed"]
        document["verdict"] = f"failed in {', '.join(failed)}" if failed else "passed"
        return not failed

    def _open(self) -> Bundle | None:
        if self._options.bundle is None:
            remedy = "make hardware BUNDLE=DIR; on a host: edgekit build MODEL --target orin"
            self.document["missing"].append({"what": "a bundle", "remedy": remedy})
            return None
        try:
            bundle = open_bundle(self._options.bundle)
        except BundleError as error:
            self.document["missing"].append({"what": error.message, "remedy": error.remedy})
            return None
        self.document["digest"] = f"sha256:{bundle.digest}"
        return bundle

    def _measure(self, bundle: Bundle) -> None:
        """Build, gate and time; a step that needs a failed one is left out."""
        plan = EnginePlan.from_dict(dict(bundle.manifest.engine_plans[0]))
        largest = max(p.batch for p in plan.profiles if p.max_tokens == 1)
        batches = sorted({batch for batch in self._options.batches if batch <= largest} or {1})
        self._step("software", steps.describe_software)
        with StageProgress() as progress:
            built = self._step("engine", lambda: steps.build_engine(bundle, self._cache, progress))
        if not built:
            return

        def gate() -> dict[str, Any]:
            with steps.opened(bundle, self._cache, 1) as session:
                return steps.run_gate(bundle, session)

        def speed() -> list[dict[str, Any]]:
            with steps.opened(bundle, self._cache, max(batches)) as session:
                options = self._options
                return steps.time_session(session, options.contexts, batches, options.steps)

        self._step("gate", gate)
        contexts = self._options.contexts
        self._step("projection", lambda: steps.project(bundle, contexts, batches))
        self._step("speed", speed)

    def _step(self, name: str, work: Callable[[], Any]) -> bool:
        """Do one step and keep what it found or why it failed; returns whether it passed."""
        try:
            found = work()
            failures = found.get("failures") if isinstance(found, dict) else None
            step = {"status": "missed" if failures else "passed", "found": found}
        except EdgekitError as error:
            step = {"status": "failed", "error": _describe(error)}
        self.document["steps"][name] = step
        print(f"{name}: {step['status']}", file=sys.stderr)
        return bool(step["status"] == "passed")


def doctor(command: Sequence[str] = DOCTOR) -> dict[str, Any]:
    """Return what `edgekit doctor` finds here; it finds problems where there are some."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"exit status {done.returncode}"}
    return found


def _describe(error: EdgekitError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": error.message, "remedy": error.remedy}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="built with --target orin")
    parser.add_argument("--out", type=Path, default=Path("hardware-report"))
    parser.add_argument("--cache", type=Path, help="folder of engines; edgekit's own by default")
    parser.add_argument("--contexts", type=_numbers, default=[512, 4096])
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=64, help="decode steps timed a row")
    parser.add_argument("--anywhere", action="store_true", help="take a GPU that is no Jetson's")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write both files and say the verdict."""
    options = parse_arguments(arguments)
    run = Run(options)
    passed = run.run()
    report.write_json(options.out / "hardware.json", run.document)
    text = readable(run.document)
    (options.out / "hardware.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
