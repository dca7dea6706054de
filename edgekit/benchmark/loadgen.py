"""MLPerf's scenarios by LoadGen: single stream, server, offline.

No run of these is an MLPerf submission: model, prompts and accuracy are none of MLPerf's, and most
runs are shorter than its ten minutes. What is MLPerf's is who decides when a query is sent, what
counts as its latency, and whether there were enough of them (``Result is : VALID``).

Sources: loadgen/mlperf.conf and loadgen/test_settings.h of github.com/mlcommons/inference, 6.0.17.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.benchmark.endpoint import Endpoint
from edgekit.benchmark.loadgen_summary import parse_summary
from edgekit.benchmark.samples import Sample
from edgekit.errors import EngineError, MissingExtraError, StorageError
from edgekit.progress import SILENT, Progress
from edgekit.worker_process import Remedies, ask

MLPerfScenario = Literal["single-stream", "server", "offline"]
NAMES: dict[MLPerfScenario, str] = {
    "single-stream": "SingleStream",
    "server": "Server",
    "offline": "Offline",
}
MLPERF_S = 600.0
"""What MLPerf asks of a run: ``*.SingleStream.min_duration``, ``*.Server.min_duration``."""
NOT_A_SUBMISSION = (
    "LoadGen's run of this server is no MLPerf submission: the model, its prompts and its accuracy "
    "are none of MLPerf's"
)
SHORTENED = f"and it is shortened: MLPerf's runs last {MLPERF_S:g} s at least"
_SEEDS = {
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
"""``mlperf.conf``'s."""
_REMEDIES = Remedies("Bench with fewer --queries", "Look into LoadGen's detailed log: --logs")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long LoadGen's runs are, and what they are held to.

    Attributes:
        duration_s: Least time over which queries are issued.
        queries: Least number of queries; 0 is what the duration takes.
        target_qps: Queries a second that ``server`` issues, at random times (Poisson).
        ttft_s: Limit of its 99th percentile of the time to the first token, in ``server``.
        tpot_s: Likewise of the time per output token.
        at_once: Requests that ``offline`` has open.
    """

    duration_s: float
    queries: int
    target_qps: float
    ttft_s: float
    tpot_s: float
    at_once: int

    @property
    def is_shortened(self) -> bool:
        """Whether MLPerf asks for longer runs."""
        return self.duration_s < MLPERF_S


def require_loadgen() -> None:
    """Refuse to go on without LoadGen.

    Raises:
        MissingExtraError: It is not installed.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingExtraError(
            "MLPerf's scenarios",
            "bench",
            "on x86-64, the only machine that LoadGen has wheels for, and bench other machines "
            "from there: give the server's URL",
        )


def library_size(scenario: MLPerfScenario, limits: Limits, warm: Sequence[Sample]) -> int:
    """Return how many prompts a run needs so that none is asked twice.

    A prefix cache would answer the second time. More than are needed are made, since LoadGen fixes
    their order before the first is issued.

    Args:
        scenario: Which.
        limits: How long.
        warm: Requests just measured, as many at once as the scenario has.
    """
    if scenario == "server":
        mean = limits.target_qps * limits.duration_s  # of a Poisson process
        expected = mean + 4 * math.sqrt(mean) if mean else 0.0
    elif scenario == "offline":
        wall_s = max(one.ended_s for one in warm) - min(one.begun_s for one in warm)
        expected = 1.5 * limits.duration_s * len(warm) / wall_s
    else:
        expected = 2 * limits.duration_s / min(one.e2e_s for one in warm)
    return max(math.ceil(expected), limits.queries, 1)


def settings(scenario: MLPerfScenario, limits: Limits) -> dict[str, Any]:
    """Return attributes of LoadGen's ``TestSettings``.

    Args:
        scenario: Which.
        limits: How long, and what it is held to.
    """
    common: dict[str, Any] = {
        **_SEEDS,
        "min_duration_ms": round(1000 * limits.duration_s),
        "min_query_count": max(limits.queries, 1),
        "performance_issue_unique": True,
        "use_token_latencies": True,
    }
    if scenario == "server":
        return {
            **common,
            "server_target_qps": limits.target_qps,
            "server_target_latency_percentile": 0.99,
            "ttft_latency": round(1e9 * limits.ttft_s),
            "tpot_latency": round(1e9 * limits.tpot_s),
        }
    return common


def run_loadgen(
    scenario: MLPerfScenario,
    endpoint: Endpoint,
    prompts: Sequence[str],
    max_tokens: int,
    limits: Limits,
    logs: Path | None,
    progress: Progress = SILENT,
) -> tuple[list[Sample], dict[str, Any]]:
    """Run a scenario; returns what each request took, and what LoadGen says of all.

    Args:
        scenario: Which.
        endpoint: What answers.
        prompts: The query sample library; each is asked once at most.
        max_tokens: Most of an answer.
        limits: How long, and what it is held to.
        logs: Folder that LoadGen's logs are kept in, made if it is not there; None keeps none.
        progress: Told how far it is; the caller starts and finishes the stage.

    Raises:
        EndpointError: A request failed.
        EngineError: LoadGen did.
        StorageError: The logs cannot be written.
    """
    with _folder(scenario, logs) as folder:
        request = {
            "endpoint": asdict(endpoint),
            "prompts": list(prompts),
            "max_tokens": max_tokens,
            "at_once": limits.at_once if scenario == "offline" else 0,
            "scenario": NAMES[scenario],
            "settings": settings(scenario, limits),
            "logs": folder,
        }
        command = [sys.executable, "-m", "edgekit.benchmark.loadgen_worker"]
        result = ask(command, request, "LoadGen", _REMEDIES, progress)
        found = parse_summary(_summary(Path(folder)))
    report = {
        "version": importlib.metadata.version("mlcommons-loadgen"),
        "is_shortened": limits.is_shortened,
        "duration_s": limits.duration_s,
        "queries": limits.queries,
        **_held_to(scenario, limits),
        **found,
        "logs": None if logs is None else folder,
    }
    return [Sample(**sample) for sample in result["samples"]], report


def _held_to(scenario: MLPerfScenario, limits: Limits) -> dict[str, float | int | None]:
    """Return the figures of a scenario's own; None in the others."""
    server = scenario == "server"
    return {
        "target_qps": limits.target_qps if server else None,
        "ttft_limit_s": limits.ttft_s if server else None,
        "tpot_limit_s": limits.tpot_s if server else None,
        "at_once": limits.at_once if scenario == "offline" else None,
    }


def _folder(scenario: str, logs: Path | None) -> AbstractContextManager[str]:
    if logs is None:
        return tempfile.TemporaryDirectory(prefix="edgekit-loadgen-")
    folder = logs / scenario
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make {folder}: {error.strerror or error}", "Choose another --logs"
        ) from error
    return nullcontext(str(folder.absolute()))


def _summary(folder: Path) -> str:
    try:
        return (folder / "mlperf_log_summary.txt").read_text()
    except OSError as error:
        raise EngineError(
            f"LoadGen left no summary: {error.strerror or error}", _REMEDIES.failed
        ) from error
