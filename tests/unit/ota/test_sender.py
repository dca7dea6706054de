"""Delivery: what is tried again, what is given up, and that nothing else is."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from write_request import read_request

from edgekit.errors import ConfigError, ExportError, StorageError
from ota.metrics import sender as module
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.points import Series
from ota.metrics.sender import Sender, StoppedError, write_url
from ota.metrics.wire import encode_labels

Answer = Callable[[httpx.Request], httpx.Response]
URL = "http://prometheus/api/v1/write"


def series(name: str, *times: int) -> Series:
    points = [(time_ms, time_ms / 2) for time_ms in times]
    return Series("acme", "orin-1", name, encode_labels({"__name__": name}), points)


class Receiver:
    """Takes requests, refuses those with a point that is bad; a request is taken whole or not.

    Attributes:
        first: Answers that come before it does its work.
        bad: Name and time of points that it will not have.
        taken: The others, in the order that they came.
    """

    def __init__(self) -> None:
        self.first: list[httpx.Response | Exception] = []
        self.bad: set[tuple[str, int]] = set()
        self.taken: list[tuple[str, int]] = []
        self.requests = 0
        self.status, self.text = 400, "duplicate sample for timestamp"

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if self.first:
            answer = self.first.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        assert request.headers["Content-Encoding"] == "snappy"
        assert request.headers["X-Prometheus-Remote-Write-Version"] == "0.1.0"
        found = [
            (s["__name__"], at) for s, points in read_request(request.content) for at, _ in points
        ]
        if self.bad & set(found):
            return httpx.Response(self.status, text=self.text)
        self.taken += found
        return httpx.Response(204)


@contextmanager
def sending(
    receiver: Answer, rejects: Path | None = None, max_points: int = 1000
) -> Iterator[tuple[Sender, ExportMetrics, threading.Event]]:
    metrics, stop = ExportMetrics(), threading.Event()
    with httpx.Client(transport=httpx.MockTransport(receiver)) as client:
        yield Sender(URL, client, metrics, Rejects(rejects), stop, max_points), metrics, stop


def rejected(metrics: ExportMetrics) -> dict[str, float]:
    return {
        sample.labels["reason"]: sample.value
        for family in metrics.rejected.collect()
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.001)


@pytest.mark.usefixtures("patient")
def test_a_server_that_fails_is_asked_again() -> None:
    """No answer, 5xx, 408 and 429 lose nothing, and nothing comes twice."""
    receiver = Receiver()
    receiver.first = [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.Response(503),
        httpx.Response(500, text="no space left on device"),
        httpx.Response(408),
        httpx.Response(429),
    ]
    with sending(receiver) as (sender, metrics, _):
        sender.send([series("a", 1, 2), series("b", 1)])
    assert receiver.taken == [("a", 1), ("a", 2), ("b", 1)]
    assert metrics.points._value.get() == 3
    assert metrics.requests.labels("failed")._value.get() == 6


def test_the_server_says_how_long_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry-After is kept to, but not for longer than we would wait ourselves."""
    waits: list[float] = []
    receiver = Receiver()
    receiver.first = [
        httpx.Response(429, headers={"Retry-After": "7"}),
        httpx.Response(503, headers={"Retry-After": "86400"}),
        httpx.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    with sending(receiver) as (sender, _, stop):

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            return False

        monkeypatch.setattr(stop, "wait", wait)
        sender.send([series("a", 1)])
    assert waits[:2] == [7, 60]
    assert 0 < waits[2] <= 2


def test_waiting_ends_when_we_are_told_to_stop() -> None:
    """A receiver that is down does not keep the process from ending."""
    receiver = Receiver()
    receiver.first = [httpx.Response(503)] * 100
    with sending(receiver) as (sender, _, stop):
        stop.set()
        with pytest.raises(StoppedError):
            sender.send([series("a", 1)])
    assert receiver.requests == 1


@pytest.mark.parametrize(("status", "text"), [
    (400, "duplicate sample for timestamp"),
    (422, "nothing of that kind"),
    (500, "too old sample"),
])  # fmt: skip
def test_bad_points_stand_alone_in_the_end(status: int, text: str, tmp_path: Path) -> None:
    """The good points of a refused request get in; the bad ones are counted and kept."""
    receiver = Receiver()
    receiver.status, receiver.text = status, text
    receiver.bad = {("a", 3), ("c", 1)}
    with sending(receiver, tmp_path / "rejects.jsonl") as (sender, metrics, _):
        sender.send([series("a", 1, 2, 3, 4), series("b", 1, 2), series("c", 1)])
    assert sorted(receiver.taken) == [("a", 1), ("a", 2), ("a", 4), ("b", 1), ("b", 2)]
    assert [at for name, at in receiver.taken if name == "a"] == [1, 2, 4]
    reason = {400: "conflict", 422: "refused", 500: "too_old"}[status]
    assert rejected(metrics) == {reason: 2}
    kept = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(one["reading"], one["first_ms"], one["reason"]) for one in kept] == [
        ("a", 3, reason),
        ("c", 1, reason),
    ]


def test_a_receiver_that_refuses_all_is_not_asked_for_ever() -> None:
    """After a hundred single refusals of a request the rest of it is refused by the part."""
    receiver = Receiver()
    names = [f"s{n}" for n in range(500)]
    receiver.bad = {(name, 1) for name in names}
    with sending(receiver) as (sender, metrics, _):
        sender.send([series(name, 1) for name in names])
    assert rejected(metrics) == {"conflict": 500}
    assert receiver.requests < 300


@pytest.mark.parametrize(("status", "remedy"), [
    (401, "token"), (403, "token"), (404, "--web.enable-remote-write-receiver"), (301, "--url"),
])  # fmt: skip
def test_a_receiver_that_refuses_us_is_an_error(status: int, remedy: str) -> None:
    """What a person must put right is said at once, and drops nothing."""
    with (
        sending(lambda _: httpx.Response(status)) as (sender, metrics, _),
        pytest.raises(ExportError) as caught,
    ):
        sender.send([series("a", 1)])
    assert remedy in caught.value.remedy
    assert rejected(metrics) == {}


def test_long_series_go_over_several_requests_in_order() -> None:
    """No request has more points than allowed, and each series' points stay ascending."""
    sizes = []
    receiver = Receiver()

    def sized(request: httpx.Request) -> httpx.Response:
        sizes.append(sum(len(points) for _, points in read_request(request.content)))
        return receiver(request)

    with sending(sized, max_points=10) as (sender, _, _):
        sender.send([series("a", *range(4)), series("b", *range(25)), series("c", *range(9))])
    assert max(sizes) == 10
    assert sum(sizes) == 38
    for name, count in (("a", 4), ("b", 25), ("c", 9)):
        assert [at for found, at in receiver.taken if found == name] == list(range(count))


def test_rejects_that_cannot_be_kept_are_an_error(tmp_path: Path) -> None:
    """A file of rejects that cannot be written is told, not passed over."""
    receiver = Receiver()
    receiver.bad = {("a", 1)}
    with (
        sending(receiver, tmp_path / "none" / "rejects.jsonl") as (sender, _, _),
        pytest.raises(StorageError, match="cannot write"),
    ):
        sender.send([series("a", 1)])


def test_the_address() -> None:
    """A bare address gets Prometheus' path, another path is kept, and no URL is refused."""
    assert write_url("http://host:9090") == "http://host:9090/api/v1/write"
    assert write_url("https://host/") == "https://host/api/v1/write"
    assert write_url("http://victoria/api/v1/push") == "http://victoria/api/v1/push"
    for wrong in ("host:9090", "ftp://host", "http://", "http://[::1", "http://host:99999"):
        with pytest.raises(ConfigError):
            write_url(wrong)
