"""From stored batches to the points of a remote write: which, under which name, in which order.

Nothing is made up: every point is a sample's value at its own time, so sending one twice changes
nothing. A missing reading is no point and no staleness marker: after five minutes without points
Prometheus shows nothing, which is what is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.contracts.columns import Column
from edgekit.contracts.series import split_name
from edgekit.contracts.telemetry import Batch
from edgekit.errors import MessageError
from ota.metrics.names import metric_of
from ota.metrics.wire import Point, encode_labels
from ota.store.records import StoredBatch

AHEAD_MS = 600_000
"""How far ahead of our clock a time may be; what is further would hold up what comes after it."""
MARGIN_MS = 300_000
"""How much younger than Prometheus' window a point must be: it ages on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is sent.

    Attributes:
        series: Names of series, without labels; None for all.
        every_ms: Of each reading the first point of every such interval, counted from 1970; 0 for
            all points. Counters lose nothing by it, gauges what was between.
        window_ms: How old a point may be: Prometheus' ``out_of_order_time_window``.
    """

    series: frozenset[str] | None = None
    every_ms: int = 0
    window_ms: int = 72 * 3_600_000

    def takes(self, reading: str) -> bool:
        """Whether a reading is sent."""
        return self.series is None or split_name(reading)[0] in self.series


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one series.

    Attributes:
        tenant: Whose device.
        device: Whose reading.
        reading: Its name in telemetry.
        labels: As the wire has them.
        points: By time, each time once.
    """

    tenant: str
    device: str
    reading: str
    labels: bytes
    points: Sequence[Point]


@dataclass(slots=True)
class Chunk:
    """What some batches come to.

    Attributes:
        series: To be sent.
        left_out: Points that are not, by reason: ``clock`` (it was not set), ``future``,
            ``too_old``, ``name`` (another's), ``damaged`` (batches; their points are not known).
    """

    series: list[Series] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def points(self) -> int:
        """How many points there are to send."""
        return sum(len(one.points) for one in self.series)


def read_chunk(batches: Iterable[StoredBatch], selection: Selection, now_ms: int) -> Chunk:
    """Return the points of some batches.

    Args:
        batches: In any order; replays come newest first.
        selection: What to take.
        now_ms: Our clock.
    """
    chunk = Chunk()
    parts: dict[tuple[str, str, str], list[list[Point]]] = {}
    for stored in batches:
        try:
            batch = stored.batch()
        except MessageError:
            chunk.left_out["damaged"] += 1
            continue
        for reading, points in _readings(batch, selection, now_ms, chunk.left_out):
            parts.setdefault((stored.tenant, stored.device, reading), []).append(points)
    for (tenant, device, reading), found in parts.items():
        metric = metric_of(reading)
        if metric is None:
            chunk.left_out["name"] += sum(map(len, found))
            continue
        named, labels = metric
        encoded = encode_labels(
            {"__name__": named.name, "tenant": tenant, "device": device, **labels}
        )
        value = named.value
        points = [(time_ms, value(reading_)) for time_ms, reading_ in _merged(found)]
        chunk.series.append(Series(tenant, device, reading, encoded, points))
    return chunk


def _readings(
    batch: Batch, selection: Selection, now_ms: int, left_out: Counter[str]
) -> Iterable[tuple[str, list[Point]]]:
    """Yield the readings of a batch that have points to send, in the device's units."""
    columns = {name: column for name, column in batch.columns.items() if selection.takes(name)}
    if batch.clock == "unsynced":
        left_out["clock"] += _count(columns, range(len(batch.times_ms)))
        return
    oldest_ms, newest_ms = now_ms - selection.window_ms + MARGIN_MS, now_ms + AHEAD_MS
    old = [row for row, time_ms in enumerate(batch.times_ms) if time_ms < oldest_ms]
    ahead = [row for row, time_ms in enumerate(batch.times_ms) if time_ms > newest_ms]
    left_out["too_old"] += _count(columns, old)
    left_out["future"] += _count(columns, ahead)
    out = {*old, *ahead}
    rows = [(row, time_ms) for row, time_ms in enumerate(batch.times_ms) if row not in out]
    for name, column in columns.items():
        points = [(time_ms, value) for row, time_ms in rows if (value := column[row]) is not None]
        if selection.every_ms:
            points = _thinned(points, selection.every_ms)
        if points:
            yield name, points


def _count(columns: Mapping[str, Column], rows: Iterable[int]) -> int:
    """Return how many values some rows have."""
    return sum(column[row] is not None for row in rows for column in columns.values())


def _thinned(points: Iterable[Point], every_ms: int) -> list[Point]:
    """Return the first point of every interval."""
    first: dict[int, Point] = {}
    for point in sorted(points):
        first.setdefault(point[0] // every_ms, point)
    return list(first.values())


def _merged(parts: Sequence[list[Point]]) -> Iterable[Point]:
    """Return the points of several batches by time; of two at one time the first that came."""
    if len(parts) == 1 and all(a[0] < b[0] for a, b in zip(parts[0], parts[0][1:], strict=False)):
        return parts[0]
    at: dict[int, Point] = {}
    for point in (point for part in parts for point in part):
        at.setdefault(point[0], point)
    return [at[time_ms] for time_ms in sorted(at)]
