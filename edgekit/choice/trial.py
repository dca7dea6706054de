"""Tries every candidate in a process of its own, and ranks those that answer right.

The gate comes first: an engine whose log-probabilities on the golden sequences are not the
bundle's is out, however fast. Candidates take turns, so that a board that warms up slows all of
them alike; each figure is the median over the rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit.bundle.layout import TOKENIZER_FOLDER
from edgekit.bundle.reader import Bundle
from edgekit.choice import edgellm
from edgekit.choice.candidates import Candidate, Candidates
from edgekit.choice.worker import WORKER
from edgekit.choice.workload import Rate, Workload
from edgekit.errors import EdgekitError, EngineError
from edgekit.evaluate.golden_set import STORED_WEIGHTS, GoldenSet
from edgekit.progress import SILENT, Progress
from edgekit.text.tokenizer import Tokenizer
from edgekit.worker_process import Remedies, ask

ROUNDS = 3
_REMEDIES = Remedies(killed="Free memory", failed="Look at `edgekit doctor --device`")


@dataclass(slots=True)
class Tried:
    """A candidate and what came of it.

    Attributes:
        candidate: It.
        failure: Why it is not to be chosen; empty if it may be.
        gate: The golden report; None if it failed before it.
        load_s: Seconds to load, of the first round: an engine that had to be built counts.
        rates: Medians at each context.
        resident_bytes: Most resident memory of its process.
        taken_bytes: By how much the machine's available memory had fallen at its end.
        seconds: What the workload takes at these rates; None if it was not timed.
    """

    candidate: Candidate
    failure: str = ""
    gate: dict[str, Any] | None = None
    load_s: float | None = None
    rates: list[Rate] = field(default_factory=list)
    resident_bytes: int | None = None
    taken_bytes: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "candidate"}
        identity = {"name": self.candidate.name, **asdict(self.candidate)}
        return {**identity, **values, "rates": [asdict(rate) for rate in self.rates]}


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried and how.

    Attributes:
        bundle: Whose digests have been checked.
        workload: The work.
        threads: CPU threads; None is all cores.
        rounds: How often each candidate is timed.
        folder: Of engines; Edge-LLM's checkpoint and engines go there, too.
        edgellm_python: Interpreter of Edge-LLM's environment, if it is a candidate.
        command: The worker; tests give another.
    """

    bundle: Bundle
    workload: Workload
    threads: int | None
    rounds: int
    folder: Path
    edgellm_python: Path | None = None
    command: Sequence[str] = WORKER

    def run(self, candidates: Candidates, progress: Progress = SILENT) -> list[Tried]:
        """Try all; returns them in the order of their speed, those that failed last.

        Raises:
            EngineError: There is none to try, or the bundle has nothing to hold them to.
        """
        if self.bundle.manifest.golden["scored_by"] != STORED_WEIGHTS:
            raise EngineError(
                "no engine can be held to this bundle: it was built with --no-check, so its golden "
                "sequences are the unquantized model's",
                "Build it again without --no-check",
            )
        if not candidates.found:
            reasons = "; ".join(f"{name}: {why}" for name, why in candidates.left_out.items())
            raise EngineError(f"nothing here runs the bundle: {reasons}", _REMEDIES.failed)
        tried = [Tried(candidate) for candidate in candidates.found]
        heard: dict[str, list[list[Rate]]] = {one.candidate.name: [] for one in tried}
        for number in range(self.rounds):
            for one in tried:
                if one.failure or (one.candidate.engine == "edgellm" and number):
                    continue
                progress.start(f"{one.candidate.name}", 0)
                try:
                    heard[one.candidate.name].append(self._once(one, number, tried, progress))
                except EdgekitError as error:
                    one.failure = str(error)
                progress.finish(one.failure or f"round {number + 1} of {self.rounds}")
        for one in tried:
            if not one.failure:
                rounds = zip(*heard[one.candidate.name], strict=True)
                one.rates = [Rate.median(rates) for rates in rounds]
                one.seconds = round(self.workload.seconds(one.rates), 3)
        return sorted(tried, key=lambda one: (bool(one.failure), one.seconds or 0.0))

    def _once(
        self, one: Tried, number: int, tried: Sequence[Tried], progress: Progress
    ) -> list[Rate]:
        """Try a candidate once; the first time it is held to the gate, too."""
        if one.candidate.engine == "edgellm":
            return self._try_edgellm(one, tried, progress)
        request = {
            **self._request(one.candidate),
            "workload": self.workload.to_dict(),
            "gate": number == 0,
        }
        said = ask(self.command, request, one.candidate.name, _REMEDIES, progress)
        if number == 0:
            one.gate, one.load_s = said["gate"], said["load_s"]
            if said["gate"]["failures"]:
                raise EngineError(f"fails the gate: {'; '.join(said['gate']['failures'])}")
        one.resident_bytes = max(one.resident_bytes or 0, said["resident_bytes"])
        one.taken_bytes = max(one.taken_bytes or 0, said["taken_bytes"])
        return [Rate(**rate) for rate in said["rates"]]

    def _request(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle.path.absolute()),
            "provider": candidate.provider,
            "dialect": candidate.dialect,
            "threads": self.threads,
            "engines": str(self.folder.absolute()),
        }

    def _try_edgellm(self, one: Tried, tried: Sequence[Tried], progress: Progress) -> list[Rate]:
        """Build and time Edge-LLM's engine, and let a session of edgekit's judge its answers."""
        if self.edgellm_python is None:
            raise AssertionError
        judge = _judge_of(tried)
        checkpoint = edgellm.checkpoint_of(self.bundle, self.folder / "edgellm", progress)
        tokenizer = Tokenizer.from_folder(self.bundle.path / TOKENIZER_FOLDER)
        golden = GoldenSet.from_dict(self.bundle.golden())
        tokens = [token for sequence in golden.sequences for token in sequence.token_ids]
        texts = edgellm.texts_for(self.workload, tokenizer, tokens)
        said = edgellm.run_edgellm(
            self.edgellm_python, checkpoint, self.workload, texts, self.rounds, progress
        )
        one.load_s, one.resident_bytes = said["load_s"], said["resident_bytes"]
        request = {**self._request(judge), "answers": edgellm.questions_for(said)}
        scores = ask(self.command, request, judge.name, _REMEDIES, progress)["scores"]
        report = edgellm.judge(said, scores)
        one.gate = report.to_dict()
        if report.failures:
            raise EngineError(f"fails the gate: {'; '.join(report.failures)}")
        return edgellm.rates_of(said, self.workload)


def _judge_of(tried: Sequence[Tried]) -> Candidate:
    """Return the candidate that says what Edge-LLM's tokens should have had: a float32 one.

    Raises:
        EngineError: There is none.
    """
    for one in tried:
        if one.candidate.provider == "cpu" and not one.failure:
            return one.candidate
    raise EngineError(
        "its answers cannot be judged: ONNX Runtime does not run the bundle on the CPU here",
        "pip install 'edgekit[device]'",
    )


def ranked(tried: Sequence[Tried]) -> tuple[Tried, Tried | None]:
    """Return the fastest that edgekit runs, and what is faster still but has its own server.

    Raises:
        EngineError: None passed.
    """
    passed = [one for one in tried if not one.failure]
    own = [one for one in passed if one.candidate.provider is not None]
    if not own:
        raise EngineError(
            "no engine passed: "
            + "; ".join(f"{one.candidate.name}: {one.failure}" for one in tried if one.failure),
            "`edgekit verify` says whether the bundle is whole",
        )
    return own[0], passed[0] if passed[0] is not own[0] else None
