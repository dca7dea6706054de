"""Collector, publisher and session put together: what the telemetry's thread does in a turn.

Nothing here waits but :meth:`Station.turn`, for an event of the session, and that not longer than
until the next tick; :meth:`Station.poll` does the same work without waiting. A part that
fails is logged and left for the next turn.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from device.telemetry.alarm_rules import PERIOD_S
from device.telemetry.alarms import Alarms
from device.telemetry.clock import Clock
from device.telemetry.collector import Collector
from device.telemetry.mqtt.day_bytes import DayBytes, wire_bytes
from device.telemetry.mqtt.events import Arrived, Connected, Delivered, Ended, Event
from device.telemetry.mqtt.health import Healths
from device.telemetry.mqtt.live import Live
from device.telemetry.mqtt.notices import OUTCOMES, Notices
from device.telemetry.mqtt.policy import Day, Link, Plan, plan
from device.telemetry.mqtt.publisher import Publisher
from device.telemetry.mqtt.reasons import KINDS
from device.telemetry.mqtt.session import Session
from device.telemetry.sensors.probe import EchoProbe
from device.telemetry.tuning import Tuning
from edgekit.contracts.series import Number, Values
from edgekit.contracts.topics import Topic
from edgekit.errors import EdgekitError, MessageError, StorageError

logger = logging.getLogger(__name__)

TURN_S = 1.0
"""Longest wait of a turn: the probe's and the session's pace."""
GOODBYE_S = 2.0
_POLLED_EVENTS = 64
"""Most events of one poll: a flood of one station must not keep the others waiting."""
_SEGMENTS = 20
"""Segments that a share of repetitions is worked out of, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a station is made of; ``on_connect`` is called once a broker has accepted it."""

    clock: Clock
    alarms: Alarms
    collector: Collector
    session: Session
    publisher: Publisher
    notices: Notices
    healths: Healths
    live: Live
    day: DayBytes
    probe: EchoProbe | None = None
    on_connect: Callable[[], None] | None = None


class Station:
    """One device's telemetry at work; one thread uses it.

    Args:
        parts: Its parts.
        tuning: How often it does what; its parts are made with the same.
        turn_s: Longest wait of a turn.
        may_sample: False sends what the ring has and adds no samples to it.

    Attributes:
        readings: The last ones.
        counts: ``malformed``: messages of the broker that could not be read.
    """

    def __init__(
        self, parts: Parts, tuning: Tuning, turn_s: float = TURN_S, *, may_sample: bool = True
    ) -> None:
        self._parts, self._tuning = parts, tuning
        self._turn_s, self._may_sample = turn_s, may_sample
        self._tick_due_s = float("-inf")
        self._last: Mapping[str, Number | None] = {}
        self._link = Link()
        self._plan = self._make_plan()
        self._told: dict[str, str] = {}
        self.readings: Values = {}
        self.counts: Counter[str] = Counter()

    def tune(self, tuning: Tuning) -> None:
        """Go on as another tuning says, from the next look at the sensors on."""
        if tuning == self._tuning:
            return
        self._tuning, parts = tuning, self._parts
        parts.alarms.change(tuning.rules)
        parts.day.limit = tuning.daily_bytes
        if parts.probe is not None:
            parts.probe.allow(tuning.probe_daily_bytes)

    def turn(self) -> None:
        """Do what is due, then wait for the session, at most until something else is due."""
        self._take_next(self._work())

    def poll(self) -> float:
        """Take in what came and do what is due, without waiting: for a thread with many stations.

        Returns:
            Seconds of the clock until it is to be called again, earlier when its session is woken.
        """
        for _ in range(_POLLED_EVENTS):
            if not self._take_next(0.0):
                break
        return self._work()

    def close(self) -> None:
        """Say goodbye, if anyone listens."""
        session = self._parts.session
        packet = session.publish(
            self._parts.healths.topic, self._parts.healths.goodbye(), retain=True
        )
        until_s = self._now_s() + GOODBYE_S
        while packet is not None and (left_s := until_s - self._now_s()) > 0:
            event = session.next_event(left_s)
            if isinstance(event, Ended):
                break
            if isinstance(event, Delivered) and event.packet == packet:
                break
        session.close()

    def values(self) -> dict[str, Number | None]:
        """Return readings of the session itself."""
        counts, parts = self._parts.session.counts, self._parts
        failures = {kind: counts[kind] for kind in KINDS}
        notices = {**dict.fromkeys(OUTCOMES, 0), **parts.notices.counts}
        refused = parts.publisher.counts["refused"] + counts["subscriptions_refused"]
        return {
            "mqtt_connects_total": counts["connects"],
            **{f"mqtt_failures_total.{kind}": count for kind, count in failures.items()},
            "mqtt_refused_total": refused,
            "mqtt_malformed_total": self.counts["malformed"],
            "mqtt_day_bytes": parts.day.used,
            **{f"notices_total.{kind}": count for kind, count in notices.items()},
        }

    def _work(self) -> float:
        """Do what is due; return how long nothing else will be."""
        now_s = self._now_s()
        if self._parts.probe is not None:
            self._parts.probe.tick(now_s)
        if now_s >= self._tick_due_s:
            self._tick_due_s = max(self._tick_due_s + PERIOD_S, now_s)
            self._guarded("collecting", self._tick)
        self._parts.session.step()
        self._guarded("publishing", lambda: self._parts.publisher.step(now_s, self._plan))
        return min(self._tick_due_s - self._now_s(), self._turn_s)

    def _take_next(self, wait_s: float) -> bool:
        """Take in the session's next event; whether there was one."""
        event = self._parts.session.next_event(wait_s)
        if event is None:
            return False
        self._guarded("the broker's message", lambda: self._take_in(event))
        return True

    def _tick(self) -> None:
        collector = self._parts.collector
        try:
            collector.tick(may_sample=self._may_sample)
        finally:  # a ring that fails hides neither the readings nor what the link has cost
            self._take_readings(collector.values)

    def _take_readings(self, values: Values) -> None:
        """Go on as the readings of now say."""
        parts = self._parts
        self.readings = values
        self._measure(values)
        self._plan = self._make_plan()
        parts.live.is_affordable = self._plan.live
        is_live = parts.live.is_on
        parts.collector.sample_s = PERIOD_S if is_live else self._plan.sample_s
        if is_live:
            parts.publisher.send_live(self._now_s())

    def _measure(self, values: Values) -> None:
        """Take in what the readings say of the link and of the bytes that it has carried."""

        def total(series: str) -> int:
            return int(values.get(f"{series}.mqtt") or 0)

        segments = total("link_segments_sent_total")
        again = total("link_segments_retransmitted_total")
        before = int(self._last.get("link_segments_sent_total.mqtt") or 0)
        again_before = int(self._last.get("link_segments_retransmitted_total.mqtt") or 0)
        strengths = [
            float(value)
            for name, value in values.items()
            if name.startswith("modem_rsrp_dbm.") and value is not None
        ]
        self._link = Link(
            rtt_ms=values.get("link_rtt_ms.mqtt"),
            retransmitted=(again - again_before) / (segments - before)
            if segments - before >= _SEGMENTS
            else self._link.retransmitted,
            rsrp_dbm=max(strengths, default=None),
        )
        if segments - before >= _SEGMENTS:
            self._last = dict(values)
        bytes_so_far = wire_bytes(
            total("link_sent_bytes_total"), total("link_received_bytes_total"), segments
        )
        try:
            self._parts.day.take_total(bytes_so_far)
        except StorageError as error:
            self._tell("counting bytes", error)

    def _make_plan(self) -> Plan:
        day = self._parts.day
        return plan(
            Day(day.limit, day.left, day.left_s),
            self._link,
            self._parts.publisher.cost,
            sample_s=self._tuning.sample_s,
            batch_s=self._tuning.batch_s,
        )

    def _take_in(self, event: Event) -> None:
        parts, now_s = self._parts, self._now_s()
        if isinstance(event, Connected):
            parts.publisher.announce(parts.healths.topic, parts.healths.birth(), now_s)
            parts.publisher.connected(event, now_s)
            if parts.on_connect is not None:
                parts.on_connect()
        elif isinstance(event, Ended):
            parts.publisher.ended()
        elif isinstance(event, Delivered):
            parts.publisher.delivered(event, now_s)
        elif isinstance(event, Arrived):
            try:
                self._read(event)
            finally:
                parts.session.acknowledge(event)

    def _read(self, message: Arrived) -> None:
        try:
            topic = Topic.parse(message.topic)
            if topic.channel == "cmd":
                self._parts.notices.take_in(topic, message.payload)
            elif (topic.channel, topic.type) == ("ack", "store"):
                self._parts.publisher.stored(message.payload)
        except MessageError as error:
            self.counts["malformed"] += 1
            if self.counts["malformed"] == 1:
                logger.warning("a message of the broker cannot be read: %s", error.message)

    def _guarded(self, what: str, work: Callable[[], None]) -> None:
        """Do something; its failure is told once and ends nothing."""
        try:
            work()
        except EdgekitError as error:
            self._tell(what, error)
        else:
            if self._told.pop(what, None) is not None:
                logger.info("%s works again", what)

    def _tell(self, what: str, error: EdgekitError) -> None:
        if self._told.get(what) != error.message:
            logger.error("%s: %s", what, error)
        self._told[what] = error.message

    def _now_s(self) -> float:
        return self._parts.clock.monotonic_ms() / 1000
