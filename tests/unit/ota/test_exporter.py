"""The export's loop: where it goes on, and what it tells of itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from metrics_cases import ListSource, stored

from edgekit.errors import ExportError, StorageError
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.exporter import CursorFile, Exporter
from ota.metrics.points import Selection, Series
from ota.metrics.sender import Sender, StoppedError

NOW = 1_784_970_600_000


class Taken(Sender):
    """Takes everything; fails when told to."""

    def __init__(self) -> None:
        self.sent: list[Sequence[Series]] = []
        self.error: Exception | None = None

    def send(self, series: Sequence[Series]) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(series)


class Setup:
    """An exporter on a list of batches; ``again`` is what a restart makes of it."""

    def __init__(self, folder: Path, batches: int) -> None:
        self.source = ListSource(
            [stored(n, {NOW - 1000 * n: {"uptime_s": n}}) for n in range(1, batches + 1)]
        )
        self.sender = Taken()
        self.file = folder / "cursor.json"
        self.stop = threading.Event()
        self.metrics = ExportMetrics()
        self.exporter = self.again()

    def again(self, limit: int = 2) -> Exporter:
        self.exporter = Exporter(
            self.source,
            self.sender,
            CursorFile(self.file),
            Selection(),
            self.metrics,
            self.stop,
            limit=limit,
            now_ms=lambda: NOW,
        )
        return self.exporter

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"edgekit_fleet_export_{name}")


@pytest.fixture
def five(tmp_path: Path) -> Setup:
    return Setup(tmp_path, 5)


def test_every_batch_is_sent_and_remembered(five: Setup) -> None:
    """Batches go out in the store's order, and a restart goes on after the last of them."""
    assert [five.exporter.step() for _ in range(4)] == [2, 2, 1, 0]
    assert five.value("batches_total") == 5
    assert json.loads(five.file.read_text()) == {"cursor": 5}
    five.source.batches.append(stored(6, {NOW: {"uptime_s": 6}}))
    five.again().step()
    assert [one.points[0][1] for one in five.sender.sent[-1]] == [6]


@pytest.mark.parametrize("error", [StoppedError(), ExportError("no", "yes")])
def test_the_cursor_moves_after_the_delivery(five: Setup, error: Exception) -> None:
    """What was not delivered is sent again: by the next step, and by the next process."""
    five.exporter.step()
    five.sender.error = error
    with pytest.raises(type(error)):
        five.exporter.step()
    assert json.loads(five.file.read_text()) == {"cursor": 2}
    five.sender.error = None
    five.again(limit=10).step()
    assert [value for _, value in five.sender.sent[-1][0].points] == [5, 4, 3]


def test_a_store_that_is_away_is_waited_for(five: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on when the store is back."""
    monkeypatch.setattr("ota.metrics.exporter._AWAY_S", 0.01)
    five.source.away = True
    thread = threading.Thread(target=five.exporter.run, kwargs={"once": True})
    thread.start()
    while five.source.asked < 3:
        time.sleep(0.001)
    five.source.away = False
    thread.join(10)
    assert five.exporter.cursor == 5


def test_stopping_ends_the_loop(five: Setup) -> None:
    """Told to stop while nothing is new, it ends at once."""
    thread = threading.Thread(target=five.exporter.run, kwargs={"poll_s": 60.0})
    thread.start()
    while five.exporter.cursor < 5:
        time.sleep(0.001)
    five.stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_lag_is_that_of_the_oldest_batch_not_delivered(five: Setup) -> None:
    """It grows while a delivery is stuck, and is 0 once all is delivered."""
    received_ms = int(1000 * (time.time() - 400))
    five.source.batches[0] = stored(1, {NOW: {"uptime_s": 1}}, received_ms=received_ms)
    five.sender.error = StoppedError()
    with pytest.raises(StoppedError):
        five.exporter.step()
    lag = five.value("lag_seconds")
    assert lag is not None
    assert 399 < lag < 500
    five.sender.error = None
    five.exporter.run(once=True)
    assert five.value("lag_seconds") == 0


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cursor": "5"}', '{"cursor": -1}', "\x00"])
def test_a_damaged_cursor_is_not_begun_anew(tmp_path: Path, text: str) -> None:
    """Sending years again is for a person to decide."""
    file = tmp_path / "cursor.json"
    file.write_text(text)
    with pytest.raises(StorageError, match="holds no cursor"):
        CursorFile(file).read()


def test_rejects_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of rejects has one predecessor and a size that it stays near."""
    monkeypatch.setattr("ota.metrics.export_metrics.MAX_REJECTS_BYTES", 1000)
    rejects = Rejects(tmp_path / "rejects.jsonl")
    for at in range(100):
        rejects.keep([Series("acme", "orin-1", "uptime_s", b"", [(at, 1.0)])], "conflict", "no")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["rejects.jsonl", "rejects.jsonl.1"]
    assert all(path.stat().st_size < 1500 for path in tmp_path.iterdir())
    last = (tmp_path / "rejects.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["first_ms"] == 99
