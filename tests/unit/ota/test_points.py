"""Which points batches come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from metrics_cases import stored

from edgekit.contracts.series import Number
from ota.metrics.points import AHEAD_MS, MARGIN_MS, Selection, Series, read_chunk

NOW = 1_784_970_600_000
HOUR = 3_600_000


def by_reading(series: list[Series]) -> dict[str, list[tuple[int, float]]]:
    return {one.reading: list(one.points) for one in series}


def test_missing_readings_are_no_points() -> None:
    """A null makes neither a point nor a marker of staleness."""
    rows: dict[int, Mapping[str, Number | None]] = {
        NOW - 20_000: {"gpu_mhz": 306.0, "emc_mhz": None},
        NOW - 10_000: {"gpu_mhz": None},
    }
    chunk = read_chunk([stored(1, rows)], Selection(), NOW)
    assert by_reading(chunk.series) == {"gpu_mhz": [(NOW - 20_000, 306e6)]}
    assert chunk.left_out.total() == 0


def test_replays_are_put_in_order() -> None:
    """Batches that come newest first, and twice, are one ascending run a series."""
    early = stored(2, {NOW - 3_000: {"uptime_s": 1}, NOW - 2_000: {"uptime_s": 2}})
    late = stored(1, {NOW - 1_000: {"uptime_s": 3}, NOW: {"uptime_s": 4}})
    chunk = read_chunk([late, early, replace(late, cursor=3)], Selection(), NOW)
    assert [one.points for one in chunk.series] == [
        [(NOW - 3_000, 1.0), (NOW - 2_000, 2.0), (NOW - 1_000, 3.0), (NOW, 4.0)]
    ]


def test_a_clock_that_stepped_back_is_put_in_order() -> None:
    """One batch whose times go back, and repeat, is sent ascending, each time once."""
    rows = {NOW - 1_000: {"uptime_s": 1}, NOW - 5_000: {"uptime_s": 2}}
    batch = stored(1, rows)
    assert read_chunk([batch], Selection(), NOW).series[0].points == [
        (NOW - 5_000, 2.0),
        (NOW - 1_000, 1.0),
    ]


def test_what_cannot_be_sent_is_counted() -> None:
    """Guessed times, times ahead, times before the window, taken names, damaged rows: by reason."""
    rows = {NOW: {"uptime_s": 1, "gpu_mhz": None}}
    old, ahead = NOW - 72 * HOUR + MARGIN_MS - 1, NOW + AHEAD_MS + 1
    chunk = read_chunk(
        [
            stored(1, rows, clock="unsynced"),
            stored(2, {old: {"uptime_s": 1, "requests_running": 0}, ahead: {"uptime_s": 2}}),
            stored(3, {NOW: {"cpu_load_ratio": 0.5}}),
            replace(stored(4, rows), payload=b"damaged"),
            stored(5, {NOW: {"uptime_s": 7}}, device="orin-2"),
        ],
        Selection(),
        NOW,
    )
    assert chunk.left_out == {"clock": 1, "too_old": 2, "future": 1, "name": 1, "damaged": 1}
    assert [(one.device, one.points) for one in chunk.series] == [("orin-2", [(NOW, 7.0)])]


def test_redated_times_are_sent() -> None:
    """A time that was worked out once the clock was set is as good as one of a clock that was."""
    chunk = read_chunk([stored(1, {NOW: {"uptime_s": 1}}, clock="redated")], Selection(), NOW)
    assert chunk.points == 1


def test_thinning_keeps_real_points() -> None:
    """The first point of each interval, whatever batch it came in: the same when sent again."""
    rows = {NOW + 10_000 * n: {"uptime_s": n, "gpu_mhz": n if n % 6 else None} for n in range(30)}
    whole = read_chunk([stored(1, rows)], Selection(every_ms=60_000), NOW)
    found = by_reading(whole.series)
    assert found["uptime_s"] == [(NOW + 60_000 * n, 6.0 * n) for n in range(5)]
    assert found["gpu_mhz"] == [(NOW + 60_000 * n + 10_000, (6 * n + 1) * 1e6) for n in range(5)]
    assert NOW % 60_000 == 0
    cut = sorted(rows)
    halves = [stored(n, {t: rows[t] for t in part}) for n, part in enumerate((cut[15:], cut[:15]))]
    for one in halves:
        thinned = read_chunk([one], Selection(every_ms=60_000), NOW)
        for name, points in by_reading(thinned.series).items():
            times = {time_ms: rows[time_ms][name] for time_ms, _ in points}
            assert None not in times.values()


def test_a_list_of_series_is_kept_to() -> None:
    """A series is named without its labels, and takes all of them."""
    rows = {NOW: {"temperature_celsius.cpu": 50, "temperature_celsius.gpu": 51, "uptime_s": 3}}
    selection = Selection(series=frozenset({"temperature_celsius"}))
    found = by_reading(read_chunk([stored(1, rows)], selection, NOW).series)
    assert found.keys() == {"temperature_celsius.cpu", "temperature_celsius.gpu"}
