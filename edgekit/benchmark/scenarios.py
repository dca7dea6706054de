"""A benchmark: scenarios run one after the other against one endpoint, and their report."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from edgekit import __version__
from edgekit.benchmark.endpoint import Client, Endpoint
from edgekit.benchmark.loadgen import (
    NOT_A_SUBMISSION,
    SHORTENED,
    Limits,
    MLPerfScenario,
    library_size,
    require_loadgen,
    run_loadgen,
)
from edgekit.benchmark.percentiles import describe
from edgekit.benchmark.prompts import PromptMaker
from edgekit.benchmark.samples import Sample
from edgekit.benchmark.streams import ask_over_streams
from edgekit.errors import EndpointError
from edgekit.power import read_machine
from edgekit.progress import SILENT, Progress

SCHEMA_VERSION = 1
Scenario = Literal["latency", "single-stream", "server", "offline", "load"]
SCENARIOS: tuple[Scenario, ...] = ("latency", "single-stream", "server", "offline", "load")
CACHED_SHARE = 0.05
"""Of the prompts' tokens; if a prefix cache has more, first tokens come too early to compare."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked.

    Attributes:
        prompt_tokens: Of each prompt.
        max_tokens: Most of an answer.
        requests: Measured for each stream, in ``latency`` and ``load``.
        warmup: Requests before, for each stream.
        streams: Numbers of streams of ``load``.
        seed: Of the prompts.
        limits: Of LoadGen's scenarios.
        logs: Folder that LoadGen's logs are kept in; None keeps none.
    """

    prompt_tokens: int
    max_tokens: int
    requests: int
    warmup: int
    streams: tuple[int, ...]
    seed: int
    limits: Limits
    logs: Path | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A scenario at one number of streams.

    Attributes:
        scenario: Which.
        streams: Requests at a time; None where LoadGen decides.
        samples: What each request took.
        loadgen: What LoadGen says; None where it has no part.
    """

    scenario: Scenario
    streams: int | None
    samples: tuple[Sample, ...]
    loadgen: dict[str, Any] | None = None

    @property
    def title(self) -> str:
        """``latency``, ``load, 4 streams``."""
        if self.scenario != "load":
            return self.scenario
        return f"load, {self.streams} stream{'s' if self.streams != 1 else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as the report has it."""
        figures = describe(self.samples)
        named = {"scenario": self.scenario, "streams": self.streams}
        return {**named, **figures, "loadgen": self.loadgen}


class Benchmark:
    """Runs scenarios.

    Args:
        endpoint: Whom to ask; without a model's name the first that it lists is taken.
        work: What to ask.
        progress: Told about a stage for each scenario, and for the prompts of each.
    """

    def __init__(self, endpoint: Endpoint, work: Workload, progress: Progress = SILENT) -> None:
        self.endpoint, self.work, self._progress = endpoint, work, progress
        self.measured: list[Measured] = []
        self.machine = read_machine()
        self._begun = datetime.now(timezone.utc)
        self._maker = PromptMaker(work.prompt_tokens, work.seed)

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Measure scenarios in order; each has prompts of its own.

        Raises:
            EndpointError: A request failed.
            EngineError: LoadGen did.
            MissingExtraError: A scenario needs LoadGen, which is not installed.
        """
        if any(name not in {"latency", "load"} for name in scenarios):
            require_loadgen()
        asyncio.run(self._choose_model())
        for name in scenarios:
            if name == "latency":
                self._measure(name, 1)
            elif name == "load":
                for streams in self.work.streams:
                    self._measure(name, streams)
            else:
                self._measure_by_loadgen(name)
        self.machine = read_machine()

    def report(self) -> dict[str, Any]:
        """Return what was measured (``docs/schemas/bench.schema.json``, less ``bundle``)."""
        machine, local = self.machine, self.endpoint.is_local
        return {
            "schema_version": SCHEMA_VERSION,
            "edgekit": __version__,
            "begun": self._begun.isoformat(timespec="seconds"),
            "target": {
                "url": self.endpoint.url,
                "model": self.endpoint.model,
                "endpoint": self.endpoint.kind,
            },
            "workload": {
                "prompt_tokens": self.work.prompt_tokens,
                "prompts_counted_by": self._maker.method,
                "max_tokens": self.work.max_tokens,
                "warmup": self.work.warmup,
                "seed": self.work.seed,
                "temperature": 0,
                "fields": self.endpoint.fields,
            },
            "scenarios": [one.to_dict() for one in self.measured],
            "machine": machine.to_dict(),
            "machine_is_server": local,
            "warnings": [*self._warnings(), *machine.warnings()],
        }

    def _warnings(self) -> Iterator[str]:
        """Yield what the figures must not be taken for."""
        if self._maker.method == "words":
            yield "the server has no /tokenize: a word of a prompt was taken for a token"
        if not self.endpoint.is_local:
            yield "the server is on another machine: the machine's state is that of the one asking"
        reports = [one.loadgen for one in self.measured if one.loadgen is not None]
        if reports:
            shortened = any(report["is_shortened"] for report in reports)
            yield f"{NOT_A_SUBMISSION}, {SHORTENED}" if shortened else NOT_A_SUBMISSION
        for one in self.measured:
            cached = sum(sample.cached_tokens or 0 for sample in one.samples)
            share = cached / sum(sample.prompt_tokens for sample in one.samples)
            if share > CACHED_SHARE:
                yield f"{one.title}: {share:.0%} of the prompts' tokens came from a prefix cache"

    async def _choose_model(self) -> None:
        if self.endpoint.model:
            return
        async with Client(self.endpoint) as client:
            names = await client.models()
        if not names:
            raise EndpointError(f"{self.endpoint.url} serves no model", "Name one with --model")
        self.endpoint = replace(self.endpoint, model=names[0])

    def _measure(self, name: Scenario, streams: int) -> None:
        """Measure requests over streams."""
        work = self.work

        async def measure() -> list[Sample]:
            async with Client(self.endpoint) as client:
                warm = await self._maker.make(client, work.warmup * streams)
                prompts = await self._maker.make(client, work.requests * streams)
                await ask_over_streams(client, warm, streams, work.max_tokens)
                title = Measured(name, streams, ()).title
                with _stage(self._progress, title, len(prompts), "requests"):
                    return await ask_over_streams(
                        client, prompts, streams, work.max_tokens, self._progress
                    )

        self.measured.append(Measured(name, streams, tuple(asyncio.run(measure()))))

    def _measure_by_loadgen(self, name: MLPerfScenario) -> None:
        work, streams = self.work, self.work.limits.at_once if name == "offline" else 1

        async def prepare() -> list[str]:
            """Warm up, which says how many prompts are needed, and make them."""
            async with Client(self.endpoint) as client:
                warm = await self._maker.make(client, max(work.warmup, 1) * streams)
                found = await ask_over_streams(client, warm, streams, work.max_tokens)
                return await self._maker.make(client, library_size(name, work.limits, found))

        prompts = asyncio.run(prepare())
        with _stage(self._progress, name, 0, "answers"):
            samples, report = run_loadgen(
                name,
                self.endpoint,
                prompts,
                work.max_tokens,
                work.limits,
                work.logs,
                self._progress,
            )
        self.measured.append(Measured(name, None, tuple(samples), report))


@contextmanager
def _stage(progress: Progress, name: str, total: int, unit: str) -> Iterator[None]:
    """Begin a stage, and finish it if it does not fail."""
    progress.start(name, total, unit)
    yield
    progress.finish()
