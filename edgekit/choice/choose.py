"""The whole of choosing: find candidates, try them, keep the fastest that passes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgekit.bundle.reader import Bundle
from edgekit.bundle.verify import verify_digests
from edgekit.choice.candidates import find_candidates
from edgekit.choice.kept import Choice, basis, require_writable, save_choice
from edgekit.choice.trial import Trial, Tried, ranked
from edgekit.choice.workload import Workload
from edgekit.power import read_machine
from edgekit.progress import SILENT, Progress


def choose_engine(
    bundle: Bundle,
    folder: Path,
    *,
    threads: int | None,
    rounds: int,
    limit_s: float,
    edgellm_python: Path | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure what can run a bundle here and keep the fastest.

    Args:
        bundle: An opened bundle.
        folder: Of engines and choices.
        threads: CPU threads; None is all cores.
        rounds: How often each engine is timed.
        limit_s: Seconds after which an engine is given up, a round.
        edgellm_python: Interpreter of the environment with Edge-LLM; None without.
        progress: Told about the stages ``digests`` and one a trial.

    Returns:
        The report of ``docs/schemas/choice.schema.json``.

    Raises:
        StorageError: The choice cannot be kept; told before anything is measured.
        DigestMismatchError: The bundle is damaged.
        EngineError: No engine passes, or there is nothing to hold engines to.
    """
    require_writable(folder)
    before, found = read_machine(), basis()
    cores = len(os.sched_getaffinity(0))
    verify_digests(bundle, threads=threads or cores, progress=progress)
    workload = Workload.fitting(bundle.manifest.limits["max_context"], limit_s)
    candidates = find_candidates(bundle, edgellm_python)
    trial = Trial(bundle, workload, threads, rounds, folder, edgellm_python)
    tried = trial.run(candidates, progress)
    return {
        "bundle": str(bundle.path),
        "digest": f"sha256:{bundle.digest}",
        "basis": found,
        "workload": workload.to_dict(),
        "rounds": rounds,
        "candidates": [one.to_dict() for one in tried],
        "left_out": candidates.left_out,
        **_keep(bundle, tried, folder, threads, found),
        # A board may have warmed up meanwhile.
        "warnings": list(dict.fromkeys([*before.warnings(), *read_machine().warnings()])),
        "machine": before.to_dict(),
    }


def _keep(
    bundle: Bundle, tried: list[Tried], folder: Path, threads: int | None, found: dict[str, str]
) -> dict[str, Any]:
    """Keep the fastest; returns which that is, what was faster still, and where it is kept."""
    own, faster = ranked(tried)
    name = None if faster is None else faster.candidate.name
    provider = own.candidate.provider
    if provider is None:
        raise AssertionError
    choice = Choice(own.candidate.name, provider, own.candidate.dialect, threads, name)
    path = save_choice(folder, bundle, choice, found)
    return {"chosen": choice.name, "faster": name, "kept": str(path)}
