"""What the exporter counts of itself, and the file that names what did not get in."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edgekit.errors import StorageError
from ota.logs import log
from ota.metrics.points import Series

PREFIX = "edgekit_fleet_export"
REASONS = (
    *("clock", "future", "too_old", "name", "damaged"),
    *("conflict", "out_of_order", "refused"),
)
"""Why points are not in Prometheus: left out before sending, and refused."""
MAX_REJECTS_BYTES = 16 * 1024 * 1024
"""Size at which the file of rejects becomes its own predecessor; one of these is kept."""


class ExportMetrics:
    """Counters of one exporter, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.points = Counter(f"{PREFIX}_points_total", "Points delivered.", registry=registry)
        self.batches = Counter(f"{PREFIX}_batches_total", "Batches done.", registry=registry)
        self.rejected = Counter(
            f"{PREFIX}_rejected_points_total",
            "Points that are not in Prometheus.",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:  # a series that begins above 0 has no increase
            self.rejected.labels(reason)
        self.requests = Counter(
            f"{PREFIX}_requests_total", "Requests, by outcome.", ["outcome"], registry=registry
        )
        self.request_s = Histogram(
            f"{PREFIX}_request_seconds",
            "From sending a request to its answer.",
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.success = Gauge(
            f"{PREFIX}_last_success_timestamp_seconds",
            "When the store was last read to its end or a batch was done.",
            registry=registry,
        )
        self._pending_ms: int | None = None
        lag = Gauge(
            f"{PREFIX}_lag_seconds",
            "Since the oldest batch that is not delivered was received; 0 for none.",
            registry=registry,
        )
        lag.set_function(self._lag_s)

    def pending(self, received_ms: int | None) -> None:
        """Note the oldest batch that is not delivered; None for none."""
        self._pending_ms = received_ms

    def _lag_s(self) -> float:
        pending_ms = self._pending_ms
        return 0.0 if pending_ms is None else max(time.time() - pending_ms / 1000, 0.0)


class Rejects:
    """Keeps what Prometheus refused, a line a series; the store still has the samples.

    Args:
        path: A file of JSON lines; None keeps nothing but the log's line.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def keep(self, series: Iterable[Series], reason: str, said: str) -> None:
        """Append some series.

        Args:
            series: What was refused.
            reason: The counter's label.
            said: Prometheus' words.

        Raises:
            StorageError: The file cannot be written.
        """
        lines = [
            {
                "tenant": one.tenant,
                "device": one.device,
                "reading": one.reading,
                "points": len(one.points),
                "first_ms": one.points[0][0],
                "last_ms": one.points[-1][0],
                "reason": reason,
                "said": said,
            }
            for one in series
        ]
        log(logging.WARNING, "points refused", series=len(lines), reason=reason, said=said)
        if self._path is None:
            return
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_REJECTS_BYTES:
                self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise StorageError(
                f"cannot write {self._path}: {error.strerror or error}", "Choose another --rejects"
            ) from error
