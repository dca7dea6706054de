"""What ``/metrics`` tells: names as vLLM's under ``edgekit_``, so that dashboards carry over.

Source of the names: vLLM's docs/usage/metrics.md and vllm/v1/metrics/loggers.py. One registry for
the process; models come and go, what was counted of them stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from device.runtime.gaps import Gaps

if TYPE_CHECKING:  # NumPy comes with them
    from device.runtime.request import Request
    from device.runtime.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
_OWN = ("edgekit_model_", "edgekit_request_refused", "edgekit_energy_", "edgekit_log_")
"""Series that vLLM has not."""


class Metrics(Collector):
    """The series of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.live: list[ModelMetrics] = []
        self._past: dict[str, Gaps] = {}
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts.")
        self.queries = self._counter("prefix_cache_queries", "Tokens looked for in the caches.")
        self.hits = self._counter("prefix_cache_hits", "Of these, those held already.")
        self.generated = self._counter("generation_tokens", "Tokens generated.")
        self.ended = self._counter(
            "request_success", "Requests by how they ended.", "finished_reason"
        )
        self.refused = self._counter("request_refused", "Requests refused, by status.", "status")
        self.queue = self._seconds("request_queue_time", "From submission to a slot.")
        self.first = self._seconds("time_to_first_token", "From submission to a token.")
        self.prefill = self._seconds("request_prefill_time", "From a slot to the first token.")
        self.decode = self._seconds("request_decode_time", "From the first token to the last.")
        self.whole = self._seconds("e2e_request_latency", "From submission to the end.")
        self.per_token = self._seconds(
            "request_time_per_output_token", "Of a request's tokens after the first.", _PER_TOKEN_S
        )
        self.prompts = self._sizes("request_prompt_tokens", "Tokens of a request's prompt.")
        self.answers = self._sizes("request_generation_tokens", "Tokens of a request's answer.")
        self.swaps = Counter(
            "edgekit_model_swap",
            "Models put in place or refused: loaded, beside, in_turn, failed.",
            ("outcome",),
            registry=self.registry,
        )
        self.log_lost = Counter(
            "edgekit_log_lines_lost", "Lines that could not be written.", registry=self.registry
        )
        self.registry.register(self)

    def of(self, model: str, digest: str) -> ModelMetrics:
        """Return the series of a model that was loaded; ``close`` them when it goes."""
        found = ModelMetrics(self, model, digest)
        self.live.append(found)
        return found

    def close(self, model: ModelMetrics) -> None:
        """Keep what was counted of a model that goes, and ask its engine no more."""
        self._past.setdefault(model.name, Gaps()).add(model.gaps)
        self.live.remove(model)

    def collect(self) -> Iterator[Metric]:
        """Yield what is read when it is asked for."""
        live = list(self.live)
        loaded = GaugeMetricFamily(
            "edgekit_model_info", "Models that are loaded.", labels=("model_name", "digest")
        )
        for model in live:
            loaded.add_metric((model.name, model.digest), 1)
        yield loaded
        yield _gauge("num_requests_running", "Requests that have a slot.", live, "running")
        yield _gauge("num_requests_waiting", "Requests that wait for one.", live, "waiting")
        yield _gauge(
            "kv_cache_usage_perc", "Share of the caches in use, 0 to 1.", live, "cache_used"
        )
        gaps = HistogramMetricFamily(
            "edgekit_inter_token_latency_seconds",
            "Between two tokens of a request.",
            labels=("model_name",),
        )
        for name in sorted({*self._past, *(model.name for model in live)}):
            both = Gaps()
            for one in (self._past.get(name), *(m.gaps for m in live if m.name == name)):
                if one is not None:
                    both.add(one)
            gaps.add_metric((name,), both.buckets(), both.total_s)
        yield gaps

    def exposition(self, *, vllm: bool = False) -> bytes:
        """Return the series in Prometheus' text form.

        Args:
            vllm: Tell those that vLLM has under its names, too.
        """
        data = generate_latest(self.registry)
        return data + generate_latest(_Renamed(self.registry)) if vllm else data

    def _counter(self, name: str, words: str, *more: str) -> Counter:
        return Counter(f"edgekit_{name}", words, ("model_name", *more), registry=self.registry)

    def _seconds(self, name: str, words: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return self._histogram(f"{name}_seconds", words, buckets)

    def _sizes(self, name: str, words: str) -> Histogram:
        return self._histogram(name, words, _TOKENS)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        labels = ("model_name",)
        return Histogram(f"edgekit_{name}", words, labels, buckets=buckets, registry=self.registry)


class ModelMetrics:
    """The series of one model.

    Args:
        metrics: The process's.
        name: The model's, label of all.
        digest: Of its bundle.

    Attributes:
        gaps: Where its engine counts the seconds between tokens.
    """

    def __init__(self, metrics: Metrics, name: str, digest: str) -> None:
        self.name, self.digest = name, digest
        self.gaps = Gaps()
        self._all = metrics
        self._scheduler: Scheduler | None = None

    def watch(self, scheduler: Scheduler) -> None:
        """Read the gauges from a scheduler."""
        self._scheduler = scheduler

    def read(self, gauge: str) -> float:
        """Return the present value of one of the scheduler's properties."""
        return 0.0 if self._scheduler is None else float(getattr(self._scheduler, gauge))

    def close(self) -> None:
        """Read no gauges any more; counters stay."""
        self._all.close(self)
        self._scheduler = None

    def refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self._all.refused.labels(self.name, str(status)).inc()

    def ended(self, request: Request, now_s: float) -> None:
        """Count a request that the engine had.

        Args:
            request: It.
            now_s: Of the scheduler's clock.
        """
        every, name = self._all, self.name
        every.ended.labels(name, request.reason or "cancelled").inc()
        if request.queued_s is None or request.started_s is None:
            return
        every.prompt.labels(name).inc(len(request.prompt))
        every.queries.labels(name).inc(len(request.prompt))
        every.hits.labels(name).inc(request.reused_tokens)
        every.generated.labels(name).inc(len(request.generated))
        every.prompts.labels(name).observe(len(request.prompt))
        every.answers.labels(name).observe(len(request.generated))
        every.queue.labels(name).observe(request.started_s - request.queued_s)
        every.whole.labels(name).observe(now_s - request.queued_s)
        if request.first_token_s is not None:
            every.first.labels(name).observe(request.first_token_s - request.queued_s)
            every.prefill.labels(name).observe(request.first_token_s - request.started_s)
            self._decoded(request, request.first_token_s)

    def _decoded(self, request: Request, first_s: float) -> None:
        """Count the time of the tokens after the first."""
        if request.last_token_s is None or len(request.generated) < 2:
            return
        seconds = max(request.last_token_s - first_s, 0.0)
        self._all.decode.labels(self.name).observe(seconds)
        self._all.per_token.labels(self.name).observe(seconds / (len(request.generated) - 1))


class _Renamed(Collector):
    """The series of a registry that vLLM has, under its names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        for metric in self._registry.collect():
            if metric.name.startswith(_OWN):
                continue
            renamed = Metric(_vllm(metric.name), metric.documentation, metric.type)
            renamed.samples = [s._replace(name=_vllm(s.name)) for s in metric.samples]
            yield renamed


def _vllm(name: str) -> str:
    return "vllm:" + name.removeprefix("edgekit_")


def _gauge(name: str, words: str, models: Iterable[ModelMetrics], read: str) -> GaugeMetricFamily:
    """Return a gauge of the models' schedulers; of two of one name the sum, or the larger share."""
    found: dict[str, float] = {}
    for model in models:
        before, value = found.get(model.name, 0.0), model.read(read)
        found[model.name] = max(before, value) if read == "cache_used" else before + value
    family = GaugeMetricFamily(f"edgekit_{name}", words, labels=("model_name",))
    for model_name, value in found.items():
        family.add_metric((model_name,), value)
    return family
