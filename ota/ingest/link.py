"""The worker's connection to the broker: MQTT 5, a lasting session, acknowledgement by hand.

paho's thread receives and puts messages into the inbox; it never waits for the store. The number
that a message is acknowledged by is one of its connection: on the next one the same number may be
another message, so what came by an earlier connection is not acknowledged any more. It comes again.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit.batch_encoding import PROPERTY
from edgekit.errors import FleetError, first_line
from ota.ingest.inbox import Inbox
from ota.ingest.messages import Arrived
from ota.ingest.metrics import Metrics
from ota.ingest.settings import Settings
from ota.logs import LOGGER, log

_SHORT_S = 5.0
_TAKEN_OVER_AFTER = 3
_MAX_UNSENT = 200
"""Acknowledgements that the broker has not taken, beyond which no group more is published."""
_PATIENCE_S = 30.0
_FAREWELL_S = 5.0
"""How long a worker that ends waits for the broker to take its acknowledgements."""
_MAX_RECONNECT_S = 30


class Link:
    """One connection at a time, made again by itself.

    Args:
        settings: Of the worker.
        inbox: Where messages go.
        metrics: Where they are counted.
        failed: Called when it is no use to go on; :attr:`failure` says why.

    Raises:
        ConfigError: TLS cannot be set up.
    """

    def __init__(
        self, settings: Settings, inbox: Inbox, metrics: Metrics, failed: Callable[[], None]
    ) -> None:
        self.failure: FleetError | None = None
        self._settings, self._inbox, self._metrics, self._failed = settings, inbox, metrics, failed
        self._lock = threading.Lock()
        self._connection = 0
        self._connected = False
        self._connected_at = 0.0
        self._short_connections = 0
        self._refusal_told = False
        self._unsent = 0
        self._sent = threading.Condition()
        self._expiring = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self._expiring.MessageExpiryInterval = settings.acknowledgement_expiry_s
        self._client = self._make_client()

    def start(self) -> None:
        """Begin to connect; a broker that is not there is tried again."""
        host, port, _ = self._settings.address()
        wanted = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wanted.SessionExpiryInterval = self._settings.session_s
        wanted.ReceiveMaximum = self._settings.receive_maximum
        wanted.MaximumPacketSize = self._settings.max_packet_bytes
        self._client.connect_async(
            host,
            port,
            keepalive=self._settings.keepalive_s,
            clean_start=False,
            properties=wanted,
        )
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect, once the broker has the acknowledgements; it keeps the session.

        Only some are on their way at a time, and a device that is not told sends its rows again.
        """
        with self._sent:
            self._sent.wait_for(lambda: not (self._unsent and self._connected), _FAREWELL_S)
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish store acknowledgements, topic and payload; what cannot be sent now is kept.

        Waits while the broker is behind with those of before, for they are in memory.
        """
        with self._sent:
            self._sent.wait_for(lambda: self._unsent < _MAX_UNSENT, _PATIENCE_S)
        for topic, payload in messages:
            with self._sent:
                self._unsent += 1
            self._client.publish(topic, payload, qos=1, properties=self._expiring)
            self._metrics.acknowledgements.inc()

    def acknowledge(self, messages: Sequence[Arrived]) -> None:
        """Tell the broker that messages are done with, if it still wants to know."""
        with self._lock:
            for message in messages:
                if message.qos and self._connected and message.connection == self._connection:
                    self._client.ack(message.mid, message.qos)

    def _make_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._settings.name,
            protocol=MQTTProtocolVersion.MQTTv5,
            manual_ack=True,
        )
        context = self._settings.tls()
        if context is not None:
            client.tls_set_context(context)
        client.reconnect_delay_set(1, _MAX_RECONNECT_S)
        client.on_connect = self._guarded(self._on_connect)
        client.on_connect_fail = self._guarded(self._on_connect_fail)
        client.on_disconnect = self._guarded(self._on_disconnect)
        client.on_publish = self._guarded(self._on_publish)
        client.on_message = self._guarded(self._on_message)
        client.on_subscribe = self._guarded(self._on_subscribe)
        return client

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Return a callback that ends the worker if it fails: paho would end its thread alone."""

        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception as error:
                said = f"internal error, {type(error).__name__}: {error}"
                self.failure = FleetError(said, "Please report it, with the log")
                LOGGER.exception("a callback of the connection failed")
                self._failed()
                raise

        return guarded

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        if code.is_failure:
            log(logging.WARNING, "the broker refuses", reason=str(code))
            return
        with self._lock:
            self._connection += 1
            self._connected = True
            self._connected_at = time.monotonic()
            self._refusal_told = False
        self._metrics.broker_up.set(1)
        log(logging.INFO, "connected to the broker", session_kept=flags.session_present)
        options = SubscribeOptions(qos=1)
        client.subscribe([(one, options) for one in self._settings.filters])

    def _on_connect_fail(self, *_: Any) -> None:
        self._metrics.broker_up.set(0)
        # paho calls this while it handles the error, and does not hand it over.
        error = sys.exc_info()[1]
        log(
            logging.WARNING,
            "the broker cannot be reached",
            broker=self._settings.broker,
            error=None if error is None else first_line(error),
        )

    def _on_disconnect(
        self, _: Client, __: Any, ___: DisconnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        with self._lock:
            self._connected = False
        with self._sent:
            self._sent.notify_all()
        # What has not been stored comes again.
        self._inbox.clear()
        self._metrics.broker_up.set(0)
        log(logging.INFO, "disconnected from the broker", reason=str(code))
        lasted_s = time.monotonic() - self._connected_at
        self._short_connections = self._short_connections + 1 if lasted_s < _SHORT_S else 0
        if self._short_connections == _TAKEN_OVER_AFTER:
            # mosquitto 2.0 does not say that another client has taken a session over.
            log(
                logging.ERROR,
                "connections end at once, again and again: is another client called the same?",
                name=self._settings.name,
            )

    def _on_subscribe(
        self, _: Client, __: Any, ___: int, codes: list[ReasonCode], ____: Properties | None
    ) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self.failure = FleetError(
                f"the broker refuses the subscriptions: {', '.join(sorted(set(refused)))}",
                "Give the worker's user the right to read them (ota/broker/services.acl)",
            )
            self._failed()

    def _on_publish(
        self, _: Client, __: Any, ___: int, code: ReasonCode, ____: Properties | None
    ) -> None:
        if code.is_failure and not self._refusal_told:
            # Devices then send again what is stored, for ever.
            self._refusal_told = True
            log(
                logging.ERROR,
                "the broker refuses acknowledgements: see ota/broker/services.acl",
                reason=str(code),
            )
        with self._sent:
            self._unsent -= 1
            self._sent.notify()

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        named = dict(getattr(message.properties, "UserProperty", ()))
        self._metrics.payload_bytes.inc(len(message.payload))
        if not message.qos and len(self._inbox) >= self._settings.receive_maximum:
            # The broker sends these whatever it has been told, and nobody was promised them.
            self._metrics.dropped.inc()
            return
        self._inbox.put(
            Arrived(
                message.topic,
                bytes(message.payload),
                named.get(PROPERTY, "json"),
                time.time_ns() // 1_000_000,
                message.mid,
                message.qos,
                self._connection,
            )
        )
