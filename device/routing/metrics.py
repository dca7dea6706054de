"""What ``/metrics`` tells of routing."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from device.routing.budget import Budget
from device.routing.rules import Decision


class RoutingMetrics:
    """The series of one router; no registry has them before ``register``."""

    def __init__(self) -> None:
        self._routes = Counter(
            "edgekit_route", "Requests by where they went.", ("route", "reason"), registry=None
        )
        self._bytes = Counter(
            "edgekit_cloud_bytes",
            "Bytes over the cloud's connections.",
            ("direction",),
            registry=None,
        )
        self._left = Gauge("edgekit_cloud_budget_left_bytes", "Of today's budget.", registry=None)
        for direction in ("sent", "received"):
            self._bytes.labels(direction)

    def register(self, registry: CollectorRegistry, budget: Budget) -> None:
        """Show the series in a registry."""
        self._left.set_function(lambda: budget.left)
        for series in (self._routes, self._bytes, self._left):
            registry.register(series)

    def routed(self, decision: Decision) -> None:
        """Count a request."""
        self._routes.labels(decision.route, decision.reason).inc()

    def carried(self, direction: str, count: int) -> None:
        """Count bytes."""
        self._bytes.labels(direction).inc(count)
