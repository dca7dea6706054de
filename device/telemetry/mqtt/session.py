"""The session with the broker: connects, comes back, says what is up.

One thread drives it (:meth:`Session.step`, :meth:`Session.next_event`); the connection has its own
and tells events through a queue, so nothing here waits for a network.

    idle ──due──► connecting ──CONNACK──► up
      ▲               │                   │
      └──── back-off ─┴───────────────────┘
"""

from __future__ import annotations

import logging
import queue
import random
from collections import Counter
from collections.abc import Callable, Sequence

from paho.mqtt.properties import Properties

from device.telemetry.clock import Clock
from device.telemetry.mqtt.backoff import Backoff, Windows
from device.telemetry.mqtt.connection import WINDOW, Connection, Endpoint
from device.telemetry.mqtt.events import Arrived, Connected, Ended, Event, Subscribed
from device.telemetry.mqtt.reasons import CONFIG, Reason
from device.telemetry.mqtt.tls import TlsContexts
from device.telemetry.sensors.tcp_info import Links

logger = logging.getLogger(__name__)

CONNACK_S = 45.0
"""From the start to the CONNACK: name, TCP, TLS and the broker."""
RENEWED_S = 5.0
"""Within this a certificate that was renewed on disk is tried where the old one was refused."""
_CLOSE_S = 3.0


class Session:
    """A session that is kept up.

    Args:
        endpoint: Where to.
        filters: What to subscribe to after every connect.
        will: Returns topic and payload of the next connection's will.
        contexts: TLS; None for none.
        links: Counts bytes.
        clock: Tells the time.
        windows: Of the back-off.
        chance: Of the jitter.
        woken: Called in the connection's thread when :meth:`next_event` has something.

    Attributes:
        is_up: Whether a broker has accepted the connection.
        window: Publishes that it takes at once.
        max_packet_bytes: Largest packet that it takes; None for any.
        counts: ``connects`` and, by kind of reason, failures.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        filters: Sequence[str],
        will: Callable[[], tuple[str, bytes]],
        *,
        contexts: TlsContexts | None,
        links: Links,
        clock: Clock,
        windows: Windows | None = None,
        chance: random.Random | None = None,
        woken: Callable[[], None] | None = None,
    ) -> None:
        self._endpoint, self._filters, self._will = endpoint, filters, will
        self._contexts, self._links, self._clock = contexts, links, clock
        self._chance = chance or random.SystemRandom()
        self._backoff = Backoff(windows or Windows(), self._chance)
        self._woken = woken
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._due_s = 0.0
        self._begun_s = 0.0
        self._refused = False
        self._told = ""
        self.is_up = False
        self.window = WINDOW
        self.max_packet_bytes: int | None = None
        self.counts: Counter[str] = Counter()

    @property
    def due_s(self) -> float:
        """When the next try is, while there is no connection."""
        return self._due_s

    def step(self) -> None:
        """Connect if it is time, give up a try that takes too long."""
        now_s = self._now_s()
        if self._connection is None:
            self._hurry_if_renewed(now_s)
            if now_s >= self._due_s:
                self._begun_s = now_s
                self._connection = Connection(
                    self._endpoint, self._contexts, self._will(), self._told_of, self._links
                )
                self._connection.start()
        elif not self.is_up and now_s - self._begun_s > CONNACK_S:
            self._connection.cut("the broker does not answer")

    def next_event(self, wait_s: float) -> Event | None:
        """Return what happened next; None if nothing does within a time."""
        try:
            event = self._events.get(timeout=max(wait_s, 0.0))
        except queue.Empty:
            return None
        if isinstance(event, Connected):
            self._on_connected(event)
        elif isinstance(event, Ended):
            self._on_ended(event.reason)
        elif isinstance(event, Subscribed) and event.refused:
            self.counts["subscriptions_refused"] += 1
            logger.error("the broker refuses subscriptions: %s", ", ".join(event.refused))
        return event

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> int | None:
        """Publish with QoS 1; return the packet identifier, None if that cannot be now."""
        if self._connection is None or not self.is_up:
            return None
        return self._connection.publish(topic, payload, retain=retain, properties=properties)

    def acknowledge(self, message: Arrived) -> None:
        """Tell the broker that a message was taken in."""
        if self._connection is not None:
            self._connection.acknowledge(message)

    def cut(self, why: str) -> None:
        """End a connection on which nothing comes back."""
        if self._connection is not None:
            self._connection.cut(why)

    def close(self, *, is_lost: bool = False) -> None:
        """End it and wait shortly for that; nothing else may be called after this.

        Args:
            is_lost: Without a goodbye, so that the broker publishes the will.
        """
        if self._connection is None:
            return
        if is_lost:
            self._connection.cut("the telemetry failed")
        else:
            self._connection.disconnect()
        if not self._connection.join(_CLOSE_S):
            self._connection.cut("the agent ends")
            self._connection.join(_CLOSE_S)

    def _told_of(self, event: Event) -> None:
        """Take an event in; called in the connection's thread."""
        self._events.put(event)
        if self._woken is not None:
            self._woken()

    def _now_s(self) -> float:
        return self._clock.monotonic_ms() / 1000

    def _hurry_if_renewed(self, now_s: float) -> None:
        if self._refused and self._contexts is not None and self._contexts.has_changed:
            self._refused = False
            self._due_s = now_s + self._chance.uniform(0.0, RENEWED_S)
            logger.info("the certificates have changed: connecting in a moment")

    def _on_connected(self, event: Connected) -> None:
        self.is_up, self._begun_s, self._told = True, self._now_s(), ""
        self.window, self.max_packet_bytes = event.window, event.max_packet_bytes
        self.counts["connects"] += 1
        logger.info(
            "connected to %s:%d, %s session",
            self._endpoint.host,
            self._endpoint.port,
            "with its old" if event.session_present else "in a new",
        )
        if self._connection is not None:
            self._connection.subscribe(self._filters)

    def _on_ended(self, reason: Reason) -> None:
        now_s = self._now_s()
        held_s = now_s - self._begun_s if self.is_up else 0.0
        self._connection, self.is_up = None, False
        # A TLS alert is the broker's word on our certificate; what we think of its certificate may
        # change as soon as our clock is set.
        kind = CONFIG if "ALERT" in reason.text else reason.kind
        self._refused = kind == CONFIG
        self.counts[kind] += 1
        wait_s = self._backoff.after(kind, held_s)
        self._due_s = now_s + wait_s
        text = str(reason)
        # The same reason again is no news: a device may be offline for days.
        level = logging.INFO if text == self._told else logging.WARNING
        logger.log(level, "not connected: %s; next try in %.0f s", text, wait_s)
        self._told = text
