"""What ``/metrics`` tells: names as vLLM's under ``edgekit_``, so that dashboards carry over."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from device.runtime.request import Request
from device.runtime.scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The series of one server.

    Args:
        scheduler: What its gauges read.
        model: Label of all.
    """

    def __init__(self, scheduler: Scheduler, model: str) -> None:
        self.registry = CollectorRegistry()
        names = ("model_name",)

        def gauge(name: str, words: str) -> Gauge:
            return Gauge(f"edgekit_{name}", words, names, registry=self.registry)

        def counter(name: str, words: str, *more: str) -> Counter:
            return Counter(f"edgekit_{name}", words, (*names, *more), registry=self.registry)

        def seconds(name: str, words: str) -> Histogram:
            return Histogram(
                f"edgekit_{name}_seconds", words, names, registry=self.registry, buckets=_SECONDS
            )

        self._model = model
        gauge("num_requests_running", "Requests that have a slot.").labels(model).set_function(
            lambda: scheduler.running
        )
        gauge("num_requests_waiting", "Requests that wait for one.").labels(model).set_function(
            lambda: scheduler.waiting
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts.").labels(model)
        self._reused = counter("prefix_cache_hits", "Of these, those held already.").labels(model)
        self._generated = counter("generation_tokens", "Tokens generated.").labels(model)
        self._ended = counter("request_success", "Requests by how they ended.", "finished_reason")
        self._refused = counter("request_refused", "Requests refused, by status.", "status")
        self._queue = seconds("request_queue_time", "From submission to a slot.").labels(model)
        self._first = seconds("time_to_first_token", "From submission to a token.").labels(model)
        self._whole = seconds("e2e_request_latency", "From submission to the end.").labels(model)

    def refused(self, status: int) -> None:
        """Count a request that was answered with an error."""
        self._refused.labels(self._model, str(status)).inc()

    def ended(self, request: Request, now_s: float) -> None:
        """Count a request that the engine had.

        Args:
            request: It.
            now_s: Of the scheduler's clock.
        """
        self._ended.labels(self._model, request.reason or "cancelled").inc()
        if request.queued_s is None or request.started_s is None:
            return
        self._prompt.inc(len(request.prompt))
        self._reused.inc(request.reused_tokens)
        self._generated.inc(len(request.generated))
        self._queue.observe(request.started_s - request.queued_s)
        self._whole.observe(now_s - request.queued_s)
        if request.first_token_s is not None:
            self._first.observe(request.first_token_s - request.queued_s)
