"""The worker: groups of messages into the store, then acknowledgements to devices, then the broker.

The order is what makes a kill harmless. Before the commit the broker still has the messages and
gives them again. After it they come again, too, until the broker has its acknowledgement, and the
store drops what it has and acknowledges it once more. A device forgets a row only on the store's
acknowledgement, so one that is lost costs a repeat and never a row.

While the store is away nothing is acknowledged: the group is tried again, and the receive maximum
keeps the broker from sending more than fits.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import StoreAcknowledgement
from edgekit.contracts.topics import Topic
from edgekit.errors import StoreAwayError, StoreError
from ota.ingest.inbox import Inbox
from ota.ingest.link import Link
from ota.ingest.messages import Arrived, read_message
from ota.ingest.metrics import Metrics
from ota.ingest.rejects import RejectLimit
from ota.ingest.settings import Settings
from ota.logs import LOGGER, log
from ota.store.commit import Committed, Writer
from ota.store.database import Store
from ota.store.items import NewItem, Reject, reject_of

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 15.0
_ACKNOWLEDGED_RANGES = 1500
"""Most ranges of one acknowledgement: a message has 64 KiB at most, a range up to 36 bytes."""


class Worker:
    """Moves messages from the broker to the store until it is stopped.

    Args:
        settings: What to do.
        store: Where to.
        metrics: Where it counts.

    Raises:
        ConfigError: TLS cannot be set up.
    """

    def __init__(self, settings: Settings, store: Store, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._limit = RejectLimit()
        self._writer = Writer(store, self._keeps)
        self._stopped = threading.Event()
        self._inbox = Inbox()
        self._taken = 0
        metrics.held.set_function(lambda: len(self._inbox) + self._taken)
        self._link = Link(settings, self._inbox, metrics, self.stop)

    def stop(self) -> None:
        """Have :meth:`run` return; a group that is not committed is left to the broker."""
        self._stopped.set()
        self._inbox.close()

    def run(self) -> None:
        """Work until :meth:`stop`.

        Raises:
            FleetError: The broker will not have this worker.
        """
        log(logging.INFO, "worker started", name=self._settings.name, broker=self._settings.broker)
        self._link.start()
        try:
            while not self._stopped.is_set():
                group = self._inbox.gather(
                    self._settings.group_messages, self._settings.group_ms / 1000
                )
                if group:
                    self._take(group)
        finally:
            self._link.stop()
            log(logging.INFO, "worker stopped", name=self._settings.name)
        if self._link.failure is not None:
            raise self._link.failure

    def _take(self, group: Sequence[Arrived]) -> None:
        """Store a group and acknowledge it; nothing of it if the worker is stopped meanwhile."""
        self._taken = len(group)
        items, rejects = self._read(group)
        if not self._commit_until_done(items, rejects):
            return
        self._link.acknowledge(group)
        self._taken = 0
        waited_ms = time.time_ns() // 1_000_000 - group[0].received_ms
        self._metrics.oldest_s.set(max(waited_ms, 0) / 1000)

    def _read(self, group: Sequence[Arrived]) -> tuple[list[NewItem], list[Reject]]:
        items: list[NewItem] = []
        rejects: list[Reject] = []
        refused: Counter[str] = Counter()
        for arrived in group:
            channel = arrived.topic.split("/", 5)[4:5]
            self._metrics.messages.labels(_channel(channel)).inc()
            read = _read_any(arrived)
            if not isinstance(read, Reject):
                items.append(read)
                continue
            refused[read.reason] += 1
            if self._keeps(read):
                rejects.append(read)
        for reason, count in refused.items():
            self._metrics.rejects.labels(reason).inc(count)
        return items, rejects

    def _keeps(self, reject: Reject) -> bool:
        """Whether a reject goes into the table and the log: some of each device do."""
        keeps = self._limit.keeps(reject)
        if keeps:
            log(
                logging.WARNING,
                "message refused",
                topic=reject.topic,
                reason=reject.reason,
                error=reject.error,
                size_bytes=len(reject.payload),
            )
        return keeps

    def _commit_until_done(self, items: Sequence[NewItem], rejects: Sequence[Reject]) -> bool:
        """Commit a group, however long the store is away; False if the worker is stopped first."""
        wait_s = _FIRST_WAIT_S
        while not self._try_commit(items, rejects, wait_s):
            # Workers that lost one store together do not come back to it together.
            if self._stopped.wait(wait_s * random.uniform(0.7, 1.3)):  # noqa: S311
                return False
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return True

    def _try_commit(
        self, items: Sequence[NewItem], rejects: Sequence[Reject], wait_s: float
    ) -> bool:
        """Whether a group is committed; where not, it is to be tried again."""
        try:
            self._commit(items, rejects)
        except StoreAwayError as error:
            self._metrics.store_failures.inc()
            self._metrics.store_up.set(0)
            log(logging.ERROR, "the store is away", error=error.message, again_s=wait_s)
            return False
        self._metrics.store_up.set(1)
        return True

    def _commit(self, items: Sequence[NewItem], rejects: Sequence[Reject]) -> None:
        """Commit a group in one transaction; message by message if the database refuses it.

        Raises:
            StoreAwayError: Some, or all, of it may not be stored yet.
        """
        try:
            self._commit_once(items, rejects)
        except StoreAwayError:
            raise
        except StoreError as error:
            log(logging.ERROR, "the store refuses a group", error=error.message)
            self._metrics.store_failures.inc()
            for item in items:
                self._commit_alone(item)
            self._commit_once([], rejects)

    def _commit_alone(self, item: NewItem) -> None:
        """Commit one message; one that the database refuses becomes a reject.

        Raises:
            StoreAwayError: It does not answer.
        """
        try:
            self._commit_once([item], [])
        except StoreAwayError:
            raise
        except StoreError as error:
            reject = reject_of(item, "store", error.message)
            self._metrics.rejects.labels(reject.reason).inc()
            if self._keeps(reject):
                self._commit_once([], [reject])

    def _commit_once(self, items: Sequence[NewItem], rejects: Sequence[Reject]) -> None:
        if not items and not rejects:
            return
        with self._metrics.commit_s.time():
            done = self._writer.commit(items, rejects)
        self._metrics.committed(done)
        self._link.publish(_acknowledgements(done))


def _read_any(arrived: Arrived) -> NewItem | Reject:
    """Return what a message says; a fault of ours in reading it is this message's alone."""
    try:
        return read_message(arrived)
    except Exception as error:  # noqa: BLE001 - ended by it, a worker would be given it again
        LOGGER.exception("reading a message failed", extra={"fields": {"topic": arrived.topic}})
        why = f"internal error, {type(error).__name__}: {error}"
        return Reject(arrived.topic, arrived.received_ms, "fault", why, arrived.payload)


def _channel(levels: Sequence[str]) -> str:
    """Return a topic's channel as a label: never what a sender made up."""
    return levels[0] if levels and levels[0] in {"m", "a", "status"} else "other"


def _acknowledgements(done: Committed) -> Iterator[tuple[str, bytes]]:
    for device, boots in done.stored.items():
        topic = str(Topic(device, "ack", "store"))
        for stored in _in_messages(boots):
            yield topic, StoreAcknowledgement(stored=stored).to_bytes()


def _in_messages(boots: Mapping[str, Ranges]) -> Iterator[Mapping[str, Ranges]]:
    """Yield what fits one message at a time; nearly always that is all of it."""
    if sum(map(len, boots.values())) <= _ACKNOWLEDGED_RANGES:
        yield boots
        return
    for boot, ranges in boots.items():
        for start in range(0, len(ranges), _ACKNOWLEDGED_RANGES):
            yield {boot: ranges[start : start + _ACKNOWLEDGED_RANGES]}
