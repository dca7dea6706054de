"""From the ring to the broker: alarms at once, samples in batches, old ones as the budget lets.

What is published stays in the ring until the store acknowledges it (ADR 17). A publish that no
PUBACK answers in time ends the connection; what was on its way goes back to the ring. While the
store says nothing, new samples and alarms go on being sent, and old ones seldom: repeating all
to a store that is down would only use up the day's bytes.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paho.mqtt.properties import Properties

from device.telemetry.batch import Packed, pack
from device.telemetry.clock import Clock
from device.telemetry.mqtt.connection import publish_properties
from device.telemetry.mqtt.events import Connected, Delivered
from device.telemetry.mqtt.policy import Cost, Plan
from device.telemetry.mqtt.reasons import FAILURE
from device.telemetry.ring import ALARM, SAMPLE, Ring, Row
from device.telemetry.rows import alarm_of, sample_of
from edgekit.batch_encoding import ENCODINGS
from edgekit.contracts import seq_ranges
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.telemetry import StoreAcknowledgement
from edgekit.contracts.topics import Device, Topic
from edgekit.errors import MessageError, RingError

logger = logging.getLogger(__name__)

BATCH_ROWS = 360
"""Most samples in a batch: an hour of them, 13 kB."""
MAX_PAYLOAD_BYTES = 64 * 1024
PROPERTY_BYTES = 512
"""What a packet has beside its payload: topic, properties, lengths."""
REPLAY_S = 10.0
"""Between two full batches of old samples: 1.3 kB/s, which leaves the link to others."""
PUBACK_S = 30.0
ANSWER_S = 120.0
"""After this the store counts as silent; its time to answer at first."""
MAX_ANSWER_S = 3600.0
"""Longest time to answer of a store that stays silent; it grows with the silence. As long rests
what the store has and a failing disk did not let go."""
LIVE_EXPIRY_S = 60
"""A sample that was to be seen live; the store gets it in a batch if it missed it."""
EXCHANGE_BYTES = 700
"""A batch's packets beside its payload: topic and properties, TLS, PUBACK, the store's answer and
its PUBACK, six segments' headers."""
_FIRST_SAMPLE_BYTES = 60.0


class Outlet(Protocol):
    """Where to publish: the session, or a test's."""

    is_up: bool
    window: int
    max_packet_bytes: int | None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> int | None:
        """Publish with QoS 1; return the packet identifier, None if that cannot be now."""
        ...

    def cut(self, why: str) -> None:
        """End a connection on which nothing comes back."""
        ...


@dataclass(frozen=True, slots=True)
class _Sent:
    """A publish without a PUBACK; ``seq`` is empty where it is of no rows."""

    boot: str
    seq: Ranges
    sent_s: float
    is_batch: bool


class Publisher:
    """Publishes the ring's rows; one thread uses it.

    Args:
        ring: Has them.
        outlet: Takes them.
        device: Whose topics.
        clock: The ring's.
        encoding: Of batches, one of ``ENCODINGS``.

    Attributes:
        counts: ``batches``, ``samples``, ``alarms``, ``live``, ``refused``, ``stored``.
    """

    def __init__(
        self,
        ring: Ring,
        outlet: Outlet,
        device: Device,
        clock: Clock,
        encoding: str = ENCODINGS[0],
    ) -> None:
        self._ring, self._outlet, self._device, self._clock = ring, outlet, device, clock
        self._encoding = encoding
        self._pending: dict[int, _Sent] = {}
        self._sample_bytes = _FIRST_SAMPLE_BYTES
        self._batch_due_s = float("-inf")
        self._last_batch_s: float | None = None
        self._more_s: float | None = None
        self._silent_since_s: float | None = None
        self.counts: Counter[str] = Counter()

    @property
    def cost(self) -> Cost:
        """What sending costs, as measured."""
        return Cost(self._sample_bytes, EXCHANGE_BYTES)

    def is_store_silent(self, now_s: float) -> bool:
        """Whether the store has had time to acknowledge something and did not."""
        since_s = self._silent_since_s
        return since_s is not None and now_s - since_s > ANSWER_S

    def connected(self, event: Connected, now_s: float) -> None:
        """Begin to send: what waits is looked at now."""
        if not event.session_present:  # a broker that forgot us may have forgotten what it had
            self._ring.release_all()
        self._batch_due_s = min(self._batch_due_s, now_s)

    def announce(self, topic: str, payload: bytes, now_s: float) -> None:
        """Publish a birth, which is retained."""
        packet = self._outlet.publish(topic, payload, retain=True)
        if packet is not None:
            self._pending[packet] = _Sent("", (), now_s, is_batch=False)

    def ended(self) -> None:
        """Give back what no PUBACK answered."""
        for sent in self._pending.values():
            self._ring.release(sent.boot, sent.seq)
        self._pending.clear()
        self._more_s = None

    def delivered(self, event: Delivered, now_s: float) -> None:
        """Take in a PUBACK; a refusal is tried again when the store's time to answer is over."""
        sent = self._pending.pop(event.packet, None)
        if sent is None:
            return
        if event.code >= FAILURE:
            self.counts["refused"] += 1
            self._more_s = None
            logger.error("the broker refuses a publish: %s", event.text)
            return
        if not sent.seq:
            return
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        # A store that has been silent for an hour is not asked again every two minutes.
        silent_s = now_s - self._silent_since_s
        answer_s = min(max(silent_s, ANSWER_S), MAX_ANSWER_S)
        self._ring.published(sent.boot, sent.seq, int(answer_s * 1000))

    def stored(self, payload: bytes) -> None:
        """Take in the store's acknowledgement.

        Raises:
            MessageError: It is none.
            RingError: The disk fails; what was acknowledged is sent again, an hour later.
        """
        acknowledgement = StoreAcknowledgement.from_bytes(payload)
        self._silent_since_s = None
        for boot, seq in acknowledgement.stored.items():
            self._let_go(boot, seq)

    def _let_go(self, boot: str, seq: Ranges) -> None:
        """Have the ring forget what the store has.

        Raises:
            RingError: The disk fails.
        """
        try:
            self.counts["stored"] += self._ring.acknowledge(boot, seq)
        except RingError:  # what stays there must not cost the day's bytes over and over
            self._ring.published(boot, seq, int(MAX_ANSWER_S * 1000))
            raise

    def step(self, now_s: float, plan: Plan) -> None:
        """Send what is due.

        Args:
            now_s: Monotonic time.
            plan: The policy's.

        Raises:
            RingError: The disk fails.
            MissingExtraError: The encoding's compressor is not installed.
        """
        if not self._outlet.is_up:
            return
        if any(now_s - sent.sent_s > PUBACK_S for sent in self._pending.values()):
            self._outlet.cut(f"no PUBACK in {PUBACK_S:.0f} s")
            return
        self._send_alarms(now_s)
        is_busy = any(sent.is_batch for sent in self._pending.values())
        if plan.batch_s is None or is_busy or len(self._pending) >= self._outlet.window:
            return
        may_replay = plan.replay_bytes > 0 and not self.is_store_silent(now_s)
        if self._last_batch_s is not None:  # batches may have become more frequent meanwhile
            self._batch_due_s = min(self._batch_due_s, self._last_batch_s + plan.batch_s)
        if now_s >= self._batch_due_s:
            self._batch_due_s = now_s + plan.batch_s
            self._send_batch(now_s, BATCH_ROWS if may_replay else self._new_rows(now_s, plan))
            self._last_batch_s = now_s
        elif self._more_s is not None and now_s >= self._more_s:
            self._more_s = None
            if may_replay:
                self._send_batch(now_s, BATCH_ROWS)

    def send_live(self, now_s: float) -> None:
        """Send the newest sample by itself.

        Raises:
            RingError: The disk fails.
        """
        if not self._outlet.is_up or len(self._pending) >= self._outlet.window:
            return
        for row in self._ring.take(1, SAMPLE):
            try:
                payload = sample_of(row).to_bytes()
            except MessageError as error:
                self._discard(row, error)
                continue
            properties = publish_properties(expiry_s=LIVE_EXPIRY_S)
            if self._publish(Topic(self._device, "m", "sample"), payload, [row], now_s, properties):
                self.counts["live"] += 1

    def _new_rows(self, now_s: float, plan: Plan) -> int:
        """Return about how many samples came since the last batch."""
        since_s = plan.batch_s if self._last_batch_s is None else now_s - self._last_batch_s
        return min(math.ceil((since_s or 0.0) / plan.sample_s) + 1, BATCH_ROWS)

    def _send_alarms(self, now_s: float) -> None:
        room = self._outlet.window - len(self._pending)
        if room <= 0:
            return
        for row in reversed(self._ring.take(room, ALARM)):  # the newest first
            try:
                alarm = alarm_of(row)
            except MessageError as error:
                self._discard(row, error)
                continue
            topic = Topic(self._device, "a", alarm.alarm)
            if self._publish(topic, alarm.to_bytes(), [row], now_s):
                self.counts["alarms"] += 1

    def _send_batch(self, now_s: float, limit: int) -> None:
        rows = self._ring.take(limit, SAMPLE)
        if not rows:
            return
        packed, sent = self._pack(rows)
        if packed is None:
            self._more_s = now_s
            return
        properties = publish_properties(encoding=packed.encoding)
        topic = Topic(self._device, "m", "batch")
        if not self._publish(topic, packed.payload, sent, now_s, properties, is_batch=True):
            return
        self.counts["batches"] += 1
        self.counts["samples"] += len(sent)
        self._sample_bytes += (len(packed.payload) / len(sent) - self._sample_bytes) / 4
        if self._ring.has_waiting(SAMPLE):
            # Behind a full batch there is more, which has time. A short one ends at another life or
            # kind of clock; what is behind that follows at once, or new rows would always be first.
            is_full = len(sent) < len(rows) or len(rows) == limit
            self._more_s = now_s + REPLAY_S if is_full else now_s

    def _pack(self, rows: Sequence[Row]) -> tuple[Packed | None, Sequence[Row]]:
        """Return the largest batch that the broker takes, and its rows, the newest of those given.

        Unreadable rows are dropped; what does not fit goes back to the ring.
        """
        limit = MAX_PAYLOAD_BYTES
        if self._outlet.max_packet_bytes is not None:
            limit = min(limit, self._outlet.max_packet_bytes - PROPERTY_BYTES)
        rows = [row for row in rows if self._is_readable(row)]
        while rows:
            packed = pack(rows, self._encoding)
            if len(packed.payload) <= limit:
                return packed, rows
            if len(rows) == 1:
                self._discard(rows[0], MessageError(f"it has {len(packed.payload)} bytes"))
                return None, ()
            older, rows = rows[: len(rows) // 2], rows[len(rows) // 2 :]
            self._ring.release(older[0].boot, seq_ranges.ranges_of(row.seq for row in older))
        return None, ()

    def _is_readable(self, row: Row) -> bool:
        try:
            sample_of(row)
        except MessageError as error:
            self._discard(row, error)
            return False
        return True

    def _discard(self, row: Row, error: MessageError) -> None:
        logger.error("row %s %d of the ring is dropped: %s", row.boot, row.seq, error.message)
        self._ring.discard(row, "unsendable")

    def _publish(
        self,
        topic: Topic,
        payload: bytes,
        rows: Sequence[Row],
        now_s: float,
        properties: Properties | None = None,
        *,
        is_batch: bool = False,
    ) -> bool:
        """Publish rows, or give them back; whether they went out."""
        boot, seq = rows[0].boot, seq_ranges.ranges_of(row.seq for row in rows)
        packet = self._outlet.publish(str(topic), payload, properties=properties)
        if packet is None:
            self._ring.release(boot, seq)
            return False
        self._pending[packet] = _Sent(boot, seq, now_s, is_batch)
        return True
