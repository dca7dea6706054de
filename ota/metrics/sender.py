"""Delivers series to a remote-write receiver: all that it takes, once at least.

A server that fails (no answer, 5xx, 408, 429) is asked again until it answers or we are told to
stop. One that refuses us (401, 403, 404) needs a person: that is an error, and nothing is lost, for
the cursor has not moved. One that refuses samples (400, 413, 422) is not to be relied on to have
taken the others: the request is halved until what is wrong stands alone. That is counted and kept,
and the rest is in.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import httpx

from edgekit.errors import ConfigError, ExportError, first_line
from ota.logs import log
from ota.metrics.export_metrics import ExportMetrics, Rejects
from ota.metrics.points import Series
from ota.metrics.wire import HEADERS, Encoder, request_body

WRITE_PATH = "/api/v1/write"
MAX_POINTS = 20_000
"""Points of a request: some 100 kB, far below the receiver's 32 MiB."""
MAX_SINGLED_OUT = 100
"""After so many refusals in a request a part that is refused is not halved any more."""
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0
_SAMPLES_REFUSED = {400, 413, 422}
_PASSING = {408, 429}
_SAID = {
    "too old": "too_old",
    "out of bounds": "too_old",
    "duplicate sample": "conflict",
    "out of order": "out_of_order",
}
"""What Prometheus says of a sample, and what we count it as. Prometheus 2.42 answers 500 for one
that is too old (storage/remote/write_handler.go): to ask again would be for ever."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    said: str

    @property
    def reason(self) -> str:
        return next((reason for words, reason in _SAID.items() if words in self.said), "refused")


class StoppedError(Exception):
    """We were told to stop before everything was delivered."""


def write_url(url: str) -> str:
    """Return where to write to; a server's bare address gets Prometheus' path.

    Raises:
        ConfigError: It is no URL of HTTP.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{url!a} is no URL of HTTP", "Write --url http://prometheus:9090")
    return url if parts.path.strip("/") else url.rstrip("/") + WRITE_PATH


class Sender:
    """One receiver.

    Args:
        url: Of :func:`write_url`.
        client: With its credentials; whoever made it closes it.
        metrics: What is counted.
        rejects: Where refusals are kept.
        stop: Set, waiting ends.
        max_points: Of a request.
    """

    def __init__(
        self,
        url: str,
        client: httpx.Client,
        metrics: ExportMetrics,
        rejects: Rejects,
        stop: threading.Event,
        max_points: int = MAX_POINTS,
    ) -> None:
        self._url = url
        self._client = client
        self._metrics = metrics
        self._rejects = rejects
        self._stop = stop
        self._max_points = max_points
        self._singled_out = 0

    def send(self, series: Sequence[Series]) -> None:
        """Deliver all points.

        Raises:
            StoppedError: We were told to stop; what was delivered may be delivered again.
            ExportError: The server refuses to be written to.
            StorageError: The rejects cannot be kept.
        """
        for part in _requests(series, self._max_points):
            self._singled_out = 0
            self._deliver(part)

    def _deliver(self, series: Sequence[Series]) -> None:
        refusal = self._post(series)
        points = sum(len(one.points) for one in series)
        if refusal is None:
            self._metrics.points.inc(points)
            return
        halves = _halves(series)
        if halves is None or self._singled_out >= MAX_SINGLED_OUT:
            self._singled_out += 1
            self._metrics.rejected.labels(refusal.reason).inc(points)
            self._rejects.keep(series, refusal.reason, refusal.said)
            return
        for half in halves:
            self._deliver(half)

    def _post(self, series: Sequence[Series]) -> _Refusal | None:
        """Send one request until it is answered; return why it was refused, if it was."""
        encoder = Encoder()
        body = request_body([encoder.series(one.labels, one.points) for one in series])
        wait_s = _FIRST_WAIT_S
        while True:
            answer = self._ask(body)
            if not isinstance(answer, httpx.Response):
                said, asked_s = answer, None
            elif answer.is_success:
                self._metrics.requests.labels("ok").inc()
                return None
            else:
                said = f"{answer.status_code} {answer.text.strip()[:300]}"
                if answer.status_code in _SAMPLES_REFUSED or _is_of_samples(answer):
                    self._metrics.requests.labels("refused").inc()
                    return _Refusal(said)
                if not answer.is_server_error and answer.status_code not in _PASSING:
                    raise _needs_a_person(self._url, said)
                asked_s = _retry_after_s(answer)
            self._metrics.requests.labels("failed").inc()
            # Exporters that failed together shall not come back together.
            pause_s = asked_s or wait_s * random.uniform(0.5, 1)  # noqa: S311 - no secret
            log(logging.WARNING, "remote write failed", said=said, again_in_s=round(pause_s, 1))
            if self._stop.wait(pause_s):
                raise StoppedError
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _ask(self, body: bytes) -> httpx.Response | str:
        """Return the answer, or what kept us from one."""
        begin = time.perf_counter()
        try:
            answer = self._client.post(self._url, content=body, headers=HEADERS)
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {first_line(error)}"
        self._metrics.request_s.observe(time.perf_counter() - begin)
        return answer


def _requests(series: Sequence[Series], max_points: int) -> Iterator[list[Series]]:
    """Yield series by the request; one that is longer goes over several, in order."""
    part: list[Series] = []
    room = max_points
    for one in series:
        for begin in range(0, len(one.points), max_points):
            piece = one if len(one.points) <= max_points else _cut(one, begin, begin + max_points)
            if len(piece.points) > room:
                yield part
                part, room = [], max_points
            part.append(piece)
            room -= len(piece.points)
    if part:
        yield part


def _cut(series: Series, begin: int, end: int) -> Series:
    return replace(series, points=series.points[begin:end])


def _halves(series: Sequence[Series]) -> tuple[Sequence[Series], Sequence[Series]] | None:
    """Return two halves of a request, None for a single point."""
    if len(series) > 1:
        middle = len(series) // 2
        return series[:middle], series[middle:]
    points = len(series[0].points)
    if points == 1:
        return None
    return [_cut(series[0], 0, points // 2)], [_cut(series[0], points // 2, points)]


def _is_of_samples(answer: httpx.Response) -> bool:
    """Whether a server error is about a sample, and so will stay."""
    return answer.is_server_error and any(words in answer.text for words in _SAID)


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Return the seconds that the server asks for, at most our own longest wait."""
    text = answer.headers.get("Retry-After", "")
    return min(float(text), _LONGEST_WAIT_S) if text.isdecimal() else None


def _needs_a_person(url: str, said: str) -> ExportError:
    remedies = {
        "401": "Give --token-file a token that the server takes",
        "403": "Give --token-file a token that may write",
        "404": "Start Prometheus with --web.enable-remote-write-receiver, or correct --url",
    }
    remedy = remedies.get(said[:3], "Correct --url")
    return ExportError(f"{url} does not take remote writes: {first_line(Exception(said))}", remedy)
