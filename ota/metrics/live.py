"""What has no history of its own: the fleet as the store knows it now, for Prometheus to scrape.

The store is asked at most once in some seconds, however many scrape. If it does not answer, the
scrape fails: Prometheus then knows that it knows nothing, which old numbers would hide.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ota.metrics.source import Facts, FactSource, Source, Validity, birth_certificates
from ota.store.records import StoredAlarm, StoredDevice

PREFIX = "edgekit_fleet"
KEEP_S = 5.0
"""How old an answer of the store may be."""
_DEVICE = ("tenant", "device")
_INFO = {"site": "site", "version": "edgekit", "board": "board"}
"""Label to the detail of a birth that it shows."""


class FleetCollector(Collector):
    """Tells of devices, their alarms, certificates, metadata and rollbacks.

    Args:
        source: The store.
        facts: What other parts know; of certificates it counts before what births tell.
        keep_s: See :data:`KEEP_S`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: Source,
        facts: FactSource = Facts,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._facts = source, facts
        self._keep_s, self._clock = keep_s, clock
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._until_s = float("-inf")

    def describe(self) -> Iterable[Metric]:
        """Return nothing: registering does not ask the store."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of now.

        Raises:
            StoreError: The store does not answer.
        """
        with self._lock:
            now_s = self._clock()
            if now_s >= self._until_s:
                self._kept = self._ask()
                self._until_s = now_s + self._keep_s
            return self._kept

    def _ask(self) -> list[Metric]:
        facts, devices = self._facts(), self._source.devices()
        certificates = {**birth_certificates(devices), **facts.certificates}
        roles = [((role,), validity) for role, validity in facts.metadata.items()]
        return [
            *_devices(devices),
            _down(devices),
            _alarms(self._source.active_alarms()),
            *_validities("certificate", "not_before", "not_after", _DEVICE, certificates.items()),
            *_validities("metadata", "signed", "expires", ("role",), roles),
            _rollbacks(facts.rollbacks),
        ]


def _devices(devices: Sequence[StoredDevice]) -> Iterable[Metric]:
    """Return presence: when each was heard, whether it is connected, and what it says it is."""
    seen = GaugeMetricFamily(
        f"{PREFIX}_device_last_seen_timestamp_seconds",
        "When the cloud last received something of it, by the cloud's clock.",
        labels=_DEVICE,
    )
    up = GaugeMetricFamily(
        f"{PREFIX}_device_up", "1 after its birth, 0 after its will.", labels=_DEVICE
    )
    info = GaugeMetricFamily(
        f"{PREFIX}_device_info", "What its last birth said.", labels=(*_DEVICE, *_INFO)
    )
    for one in devices:
        key = (one.tenant, one.device)
        seen.add_metric(key, one.last_seen_ms / 1000)
        if one.state is not None:
            up.add_metric(key, float(one.state == "up"))
        details = [str(one.details.get(name) or "") for name in _INFO.values()]
        info.add_metric((*key, *details), 1.0)
    return seen, up, info


def _down(devices: Sequence[StoredDevice]) -> Metric:
    """Return why devices are down: who said goodbye is not who was lost."""
    family = GaugeMetricFamily(
        f"{PREFIX}_device_down",
        "1 for a device that is down: stopped, lost, or empty where nothing says why.",
        labels=(*_DEVICE, "reason"),
    )
    for one in devices:
        if one.state == "down":
            family.add_metric((one.tenant, one.device, one.down_reason or ""), 1.0)
    return family


def _alarms(alarms: Sequence[StoredAlarm]) -> Metric:
    family = GaugeMetricFamily(
        f"{PREFIX}_alarm_active",
        "1 for an alarm that the device has raised and not cleared.",
        labels=(*_DEVICE, "alarm", "reading", "severity"),
    )
    # A device that restarted may have raised one in two boots: it is one alarm.
    for key in {(a.tenant, a.device, a.alarm, a.reading, a.severity) for a in alarms}:
        family.add_metric(key, 1.0)
    return family


def _validities(
    what: str,
    begin: str,
    end: str,
    labels: Sequence[str],
    found: Iterable[tuple[Sequence[str], Validity]],
) -> Iterable[Metric]:
    """Return when something begins and ends to hold."""
    begins, ends = (
        GaugeMetricFamily(
            f"{PREFIX}_{what}_{name}_timestamp_seconds", f"{name} of the {what}.", labels=labels
        )
        for name in (begin, end)
    )
    for key, validity in found:
        begins.add_metric(key, validity.begin_s)
        ends.add_metric(key, validity.end_s)
    return begins, ends


def _rollbacks(found: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(
        f"{PREFIX}_rollbacks", "Updates that the device took back.", labels=_DEVICE
    )
    for key, count in found.items():
        family.add_metric(key, count)
    return family
