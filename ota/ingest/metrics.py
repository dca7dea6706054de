"""What a worker counts, as Prometheus reads it."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ota.store.commit import Committed
from ota.store.items import REASONS

_P = "edgekit_ingest"
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counters of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.messages = counter(f"{_P}_messages_total", "Messages received.", ["channel"])
        self.dropped = counter(
            f"{_P}_dropped_messages_total", "Messages of QoS 0 that came while others waited."
        )
        self.payload_bytes = counter(f"{_P}_payload_bytes_total", "Their payloads.")
        self.rejects = counter(f"{_P}_rejects_total", "Messages refused.", ["reason"])
        self.rows = counter(
            f"{_P}_rows_total",
            "Samples and alarms: stored now, or known already and dropped.",
            ["kind", "outcome"],
        )
        for reason in REASONS:  # a series that begins above 0 has no increase
            self.rejects.labels(reason)
        self.health = counter(f"{_P}_health_total", "Births and wills.")
        self.acknowledgements = counter(
            f"{_P}_store_acknowledgements_total", "Acknowledgements published to devices."
        )
        self.store_failures = counter(
            f"{_P}_store_failures_total", "Transactions that were rolled back."
        )
        self.store_up = gauge(f"{_P}_store_up", "Whether the last transaction was committed.")
        self.broker_up = gauge(f"{_P}_broker_up", "Whether the broker is connected.")
        self.held = gauge(f"{_P}_unacknowledged_messages", "Received and not committed.")
        self.oldest_s = gauge(
            f"{_P}_last_wait_seconds",
            "From receiving the oldest message of the last group to its commit.",
        )
        self.commit_s = Histogram(
            f"{_P}_commit_seconds", "Transactions.", registry=self.registry, buckets=_BUCKETS_S
        )

    def committed(self, done: Committed) -> None:
        """Count what a transaction did."""
        for kind, outcome, rows in (
            ("sample", "stored", done.samples),
            ("sample", "known", done.known_samples),
            ("alarm", "stored", done.alarms),
            ("alarm", "known", done.known_alarms),
        ):
            self.rows.labels(kind, outcome).inc(rows)
        self.health.inc(done.health)
        for reject in done.refused:
            self.rejects.labels(reject.reason).inc()
