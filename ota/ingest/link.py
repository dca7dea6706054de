"""The worker's connection to the broker: MQTT 5, a lasting session, acknowledgement by hand.

paho's thread receives and puts messages into the inbox; it never waits for the store. The number
that a message is acknowledged by is one of its connection: on the next one the same number may be
another message, so what came by an earlier connection is not acknowledged any more. It comes again.
"""

from __future__ import annotations

import logging
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
from edgekit.errors import FleetError
from ota.ingest.inbox import Inbox
from ota.ingest.messages import Arrived
from ota.ingest.metrics import Metrics
from ota.ingest.settings import Settings
from ota.logs import log

_TAKEN_OVER = 0x8E
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
        """Disconnect, after what is to be sent; the broker keeps the session."""
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, messages: Iterable[tuple[str, bytes]]) -> None:
        """Publish store acknowledgements, topic and payload; what cannot be sent now is kept."""
        for topic, payload in messages:
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
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    def _on_connect(
        self, client: Client, _: Any, flags: ConnectFlags, code: ReasonCode, __: Properties | None
    ) -> None:
        if code.is_failure:
            log(logging.WARNING, "the broker refuses", reason=str(code))
            return
        with self._lock:
            self._connection += 1
            self._connected = True
        self._metrics.broker_up.set(1)
        log(logging.INFO, "connected to the broker", session_kept=flags.session_present)
        options = SubscribeOptions(qos=1)
        client.subscribe([(one, options) for one in self._settings.filters])

    def _on_connect_fail(self, *_: Any) -> None:
        self._metrics.broker_up.set(0)
        log(logging.WARNING, "the broker cannot be reached", broker=self._settings.broker)

    def _on_disconnect(
        self, _: Client, __: Any, ___: DisconnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        with self._lock:
            self._connected = False
        # What has not been stored comes again.
        self._inbox.clear()
        self._metrics.broker_up.set(0)
        log(logging.INFO, "disconnected from the broker", reason=str(code))
        if code.value == _TAKEN_OVER:
            self._fail(f"another client has connected as {self._settings.name!a}")

    def _on_subscribe(
        self, _: Client, __: Any, ___: int, codes: list[ReasonCode], ____: Properties | None
    ) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            self._fail(f"the broker refuses the subscriptions: {', '.join(sorted(set(refused)))}")

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        named = dict(getattr(message.properties, "UserProperty", ()))
        self._metrics.payload_bytes.inc(len(message.payload))
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

    def _fail(self, why: str) -> None:
        remedy = "Give every worker a name of its own, and its user the rights to read and write"
        self.failure = FleetError(why, remedy)
        self._failed()
