"""What a worker counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ota.store.commit import Committed

PREFIX = "edgekit_ingest"


class Metrics:
    """Counters of one worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.messages = Counter(
            f"{PREFIX}_messages_total", "Messages received.", ["channel"], registry=registry
        )
        self.payload_bytes = Counter(
            f"{PREFIX}_payload_bytes_total", "Their payloads.", registry=registry
        )
        self.rejects = Counter(
            f"{PREFIX}_rejects_total", "Messages refused.", ["reason"], registry=registry
        )
        self.rows = Counter(
            f"{PREFIX}_rows_total",
            "Samples and alarms: stored now, or known and dropped.",
            ["kind", "outcome"],
            registry=registry,
        )
        self.health = Counter(f"{PREFIX}_health_total", "Births and wills.", registry=registry)
        self.acknowledgements = Counter(
            f"{PREFIX}_store_acknowledgements_total", "Published.", registry=registry
        )
        self.commit_s = Histogram(
            f"{PREFIX}_commit_seconds",
            "Transactions.",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.store_failures = Counter(
            f"{PREFIX}_store_failures_total",
            "Transactions that were rolled back.",
            registry=registry,
        )
        self.store_up = Gauge(
            f"{PREFIX}_store_up", "Whether the last transaction was committed.", registry=registry
        )
        self.broker_up = Gauge(
            f"{PREFIX}_broker_up", "Whether the broker is connected.", registry=registry
        )
        self.held = Gauge(
            f"{PREFIX}_unacknowledged_messages", "Received and not committed.", registry=registry
        )
        self.oldest_s = Gauge(
            f"{PREFIX}_last_wait_seconds",
            "From receiving the oldest message of the last group to its commit.",
            registry=registry,
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
