"""MLPerf's LoadGen in a process of its own: ``python -m edgekit.benchmark.loadgen_worker``.

LoadGen cannot be stopped from Python while a query is open, so that a request that fails ends the
process. Requests are sent from an event loop in a thread of its own; LoadGen issues queries from
another.
"""

from __future__ import annotations

import array
import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from edgekit.benchmark.endpoint import Client, Endpoint
from edgekit.benchmark.samples import Sample
from edgekit.errors import EndpointError
from edgekit.worker_process import serve

PHASE_S = 1.0
"""How often it says how far it is."""


class SystemUnderTest:
    """What LoadGen issues queries to: an endpoint.

    Args:
        endpoint: That answers.
        prompts: The query sample library.
        max_tokens: Most of an answer.
        at_once: Most requests that are open; 0 is as many as LoadGen issues.
        first_tokens: Whether LoadGen is told of first tokens (it is not in Offline).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        prompts: list[str],
        max_tokens: int,
        at_once: int,
        *,
        first_tokens: bool,
    ) -> None:
        import mlperf_loadgen  # noqa: PLC0415 - an extra

        self._loadgen = mlperf_loadgen
        self._prompts, self._max_tokens = prompts, max_tokens
        self._first_tokens = first_tokens
        self.events: queue.Queue[Sample | BaseException | None] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._client, self._gate = self._wait(self._open(endpoint, at_once))

    def issue(self, queries: list[Any]) -> None:
        """Take queries; called by LoadGen, which waits for nothing here."""
        for query in queries:
            answer = self._answer(query.id, query.index)
            asyncio.run_coroutine_threadsafe(answer, self._loop).add_done_callback(self._note)

    def close(self) -> None:
        """Close the connections."""
        self._wait(self._client.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, doing: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    async def _open(self, endpoint: Endpoint, at_once: int) -> tuple[Client, asyncio.Semaphore]:
        # More than LoadGen ever issues is no limit.
        return Client(endpoint), asyncio.Semaphore(at_once or len(self._prompts))

    async def _answer(self, query_id: int, index: int) -> None:
        """Ask for a sample's answer and tell LoadGen of it."""

        def first() -> None:
            if self._first_tokens:
                self._loadgen.FirstTokenComplete([self._response(query_id)])

        async with self._gate:
            sample = await self._client.ask(self._prompts[index], self._max_tokens, first)
        if sample.output_tokens < 2:
            raise EndpointError(
                "an answer of one token has no time per output token, which LoadGen asks for",
                "Let answers be longer: --ignore-eos, or another --seed",
            )
        # The last completion ends the test, after which nothing is read any more.
        self.events.put(sample)
        self._loadgen.QuerySamplesComplete([self._response(query_id, sample.output_tokens)])

    def _note(self, answer: Future[None]) -> None:
        """Tell of an answer that failed."""
        error = answer.exception()
        if error is not None:
            self.events.put(error)

    def _response(self, query_id: int, *tokens: int) -> Any:
        """Return a response; LoadGen reads no text in performance mode."""
        address, length = _NO_TEXT.buffer_info()
        return self._loadgen.QuerySampleResponse(query_id, address, length, *tokens)


_NO_TEXT = array.array("B", b"\0")


def run_test(request: dict[str, Any], phase: Callable[[str], None]) -> dict[str, Any]:
    """Run a test of LoadGen's.

    Args:
        request: ``endpoint``, ``prompts``, ``max_tokens``, ``at_once``, ``scenario`` (LoadGen's
            name), ``settings`` (attributes of its ``TestSettings``) and ``logs`` (a folder).
        phase: Told how far it is.

    Returns:
        ``samples``; LoadGen's own figures are in its logs.

    Raises:
        EndpointError: A request failed.
    """
    system = SystemUnderTest(
        Endpoint(**request["endpoint"]),
        request["prompts"],
        request["max_tokens"],
        request["at_once"],
        first_tokens=request["scenario"] != "Offline",
    )
    threading.Thread(target=_run, args=(system, request), daemon=True).start()
    found: list[Sample] = []
    told_s = time.monotonic()
    while (event := system.events.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        found.append(event)
        if time.monotonic() - told_s >= PHASE_S:
            told_s = time.monotonic()
            phase(f"{len(found)} answers")
    system.close()
    return {"samples": [sample.to_dict() for sample in found]}


def _run(system: SystemUnderTest, request: dict[str, Any]) -> None:
    """Let LoadGen test, and tell of its end."""
    try:
        _start(system, request)
    except Exception as error:  # noqa: BLE001 - raised where the end is waited for
        system.events.put(error)
    else:
        system.events.put(None)


def _start(system: SystemUnderTest, request: dict[str, Any]) -> None:
    """Let LoadGen issue queries until its test is over."""
    import mlperf_loadgen  # noqa: PLC0415 - an extra

    settings, logs = mlperf_loadgen.TestSettings(), mlperf_loadgen.LogSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, request["scenario"])
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    for name, value in request["settings"].items():
        setattr(settings, name, value)
    logs.log_output.outdir = request["logs"]
    logs.enable_trace = False
    samples = len(request["prompts"])
    sut = mlperf_loadgen.ConstructSUT(system.issue, _nothing)
    library = mlperf_loadgen.ConstructQSL(samples, samples, _nothing, _nothing)
    # It reads settings of a file of this name where there is one, which overrule these.
    audit = str(Path(request["logs"]) / "audit.config")
    mlperf_loadgen.StartTestWithLogSettings(sut, library, settings, logs, audit)
    mlperf_loadgen.DestroyQSL(library)
    mlperf_loadgen.DestroySUT(sut)


def _nothing(*_: object) -> None:
    """Load nothing, flush nothing: prompts are in memory, and queries are sent at once."""


if __name__ == "__main__":
    serve(run_test)
