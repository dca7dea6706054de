"""Writes what the store gets to Prometheus, batch by batch, at least once.

The cursor, which is the store's number of the last batch that is done, moves after the receiver has
everything before it, and is kept in a file that is whole or as it was. An exporter that is killed
sends some batches again, which changes nothing: the same points at the same times.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgekit.bundle.storage import write_atomic
from edgekit.errors import StorageError, StoreAwayError
from ota.logs import log
from ota.metrics.export_metrics import ExportMetrics
from ota.metrics.points import Selection, read_chunk
from ota.metrics.sender import Sender, StoppedError
from ota.metrics.source import Source

LIMIT = 50
"""Batches read at once: some 200 000 points of ten minutes at a sample in ten seconds."""
POLL_S = 2.0
"""How long the store is left alone after it had nothing new."""
_AWAY_S = 5.0


class CursorFile:
    """Where the exporter goes on.

    Args:
        path: JSON with one number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int | None:
        """Return the cursor, None if there is no file yet.

        Raises:
            StorageError: It cannot be read, or holds something else: to begin anew would send all
                that is stored, so that is for a person to decide.
        """
        try:
            data = json.loads(self._path.read_bytes())
            cursor = data["cursor"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(
                f"cannot read {self._path}: {error.strerror or error}", "Choose another --state"
            ) from error
        except (ValueError, TypeError, KeyError) as error:
            raise self._strange() from error
        if type(cursor) is not int or cursor < 0:
            raise self._strange()
        return cursor

    def write(self, cursor: int) -> None:
        """Keep a cursor, on disk when this returns.

        Raises:
            StorageError: It cannot be written.
        """
        write_atomic(self._path, json.dumps({"cursor": cursor}).encode(), option="--state")

    def _strange(self) -> StorageError:
        return StorageError(
            f"{self._path} holds no cursor", "Remove it to send everything again, or restore it"
        )


class Exporter:
    """One store to one receiver.

    Args:
        source: The store.
        sender: The receiver.
        cursor: Where to go on.
        selection: What to send.
        metrics: What is counted.
        stop: Set, the loop ends.
        limit: Batches read at once.
        now_ms: Our clock.
    """

    def __init__(
        self,
        source: Source,
        sender: Sender,
        cursor: CursorFile,
        selection: Selection,
        metrics: ExportMetrics,
        stop: threading.Event,
        limit: int = LIMIT,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._source = source
        self._sender = sender
        self._file = cursor
        self._selection = selection
        self._metrics = metrics
        self._stop = stop
        self._limit = limit
        self._now_ms = now_ms
        self._cursor = cursor.read() or 0

    @property
    def cursor(self) -> int:
        """Of the last batch that is done."""
        return self._cursor

    def step(self) -> int:
        """Deliver the next batches; return how many they were, 0 if there was nothing new.

        Raises:
            StoppedError: We were told to stop; nothing has moved.
            StoreError: The store refuses.
            ExportError: The receiver refuses to be written to.
            StorageError: The cursor or the rejects cannot be written.
        """
        batches = self._source.batches_after(self._cursor, self._limit)
        self._metrics.pending(batches[0].received_ms if batches else None)
        if batches:
            chunk = read_chunk(batches, self._selection, self._now_ms())
            for reason, points in chunk.left_out.items():
                if points:
                    self._metrics.rejected.labels(reason).inc(points)
                    log(logging.WARNING, "points left out", reason=reason, points=points)
            self._sender.send(chunk.series)
            self._cursor = batches[-1].cursor
            self._file.write(self._cursor)
            self._metrics.batches.inc(len(batches))
        self._metrics.success.set(self._now_ms() / 1000)
        return len(batches)

    def run(self, *, once: bool = False, poll_s: float = POLL_S) -> None:
        """Deliver until told to stop; wait out a store that is away.

        Args:
            once: End when there is nothing left.
            poll_s: See :data:`POLL_S`.

        Raises:
            StoreError: The store refuses.
            ExportError: The receiver refuses to be written to.
            StorageError: The cursor or the rejects cannot be written.
        """
        while not self._stop.is_set():
            done = self._try_step()
            if done == 0:
                if once:
                    return
                self._stop.wait(poll_s)

    def _try_step(self) -> int | None:
        """Deliver the next batches; return how many they were, None if they must wait."""
        try:
            return self.step()
        except StoreAwayError as error:
            log(logging.WARNING, "store away", said=error.message)
            self._stop.wait(_AWAY_S)
        except StoppedError:
            log(logging.INFO, "stopped before all was delivered", cursor=self._cursor)
        return None
