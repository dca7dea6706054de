"""A plain MQTT v5 client for tests: it keeps what it gets, and waits for what should come."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from mqtt_certificates import Identity
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

WAIT_S = 15.0


class Client:
    """One connection with a thread of its own.

    Args:
        port: On 127.0.0.1.
        client_id: Its client id.
        topics: Filters to subscribe to with QoS 1 at every connect.
        identity: Its certificate; None for no TLS.
        server_ca: PEM file; needed with an identity.
        clean_start: False keeps its session for an hour.

    Attributes:
        messages: What came, in order.
        reason: Of the last CONNACK, or of how the connection ended; None before.
        was_accepted: Whether a CONNACK has accepted it.
        take: Called with each message in the client's thread, before it is kept.
    """

    def __init__(
        self,
        port: int,
        client_id: str,
        topics: Sequence[str] = (),
        *,
        identity: Identity | None = None,
        server_ca: Path | None = None,
        clean_start: bool = True,
    ) -> None:
        self._port, self._topics, self._clean_start = port, topics, clean_start
        self._changed = threading.Condition()
        self._subscribed = not topics
        self.messages: list[mqtt.MQTTMessage] = []
        self.reason: ReasonCode | None = None
        self.was_accepted = False
        self.take: Callable[[mqtt.MQTTMessage], None] | None = None
        self.published: dict[int, ReasonCode] = {}
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5)
        self.client.reconnect_delay_set(1, 1)
        if identity is not None:
            context = ssl.create_default_context(cafile=server_ca)
            context.load_cert_chain(identity.certificate, identity.key)
            self.client.tls_set_context(context)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish

    def __enter__(self) -> Client:  # noqa: PYI034  # Self is of 3.11
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if self._clean_start else 3600
        self.client.connect(
            "127.0.0.1", self._port, clean_start=self._clean_start, properties=properties
        )
        self.client.loop_start()
        self.wait_until(lambda: self.reason is not None, "the broker's answer")
        if self.reason is not None and not self.reason.is_failure:
            self.wait_until(lambda: self._subscribed, "the subscription")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, **properties: object
    ) -> ReasonCode:
        """Publish with QoS 1 and return the reason code of the PUBACK."""
        extra = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            setattr(extra, name, value)
        mid = self.client.publish(topic, payload, qos=1, retain=retain, properties=extra).mid
        self.wait_until(lambda: mid in self.published, f"the PUBACK of {topic}")
        return self.published[mid]

    def wait_until(self, condition: Callable[[], bool], what: str, wait_s: float = WAIT_S) -> None:
        """Wait for something that this client's callbacks bring about."""
        with self._changed:
            assert self._changed.wait_for(condition, wait_s), f"{what} did not come in {wait_s} s"

    def wait_for(self, count: int, wait_s: float = WAIT_S) -> list[mqtt.MQTTMessage]:
        """Wait for that many messages in all; return them."""
        self.wait_until(
            lambda: len(self.messages) >= count, f"{count} messages ({len(self.messages)})", wait_s
        )
        return self.messages

    def stays_at(self, count: int, for_s: float = 0.5) -> bool:
        """Whether no more messages than these come for a while."""
        time.sleep(for_s)
        return len(self.messages) == count

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, code: ReasonCode, _p: Any
    ) -> None:
        self.was_accepted = self.was_accepted or not code.is_failure
        if not code.is_failure and self._topics:
            client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in self._topics])
        self._note(code)

    def _on_disconnect(
        self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, _p: Any
    ) -> None:
        self._note(code)

    def _note(self, code: ReasonCode) -> None:
        with self._changed:
            self.reason = code
            self._changed.notify_all()

    def _on_subscribe(self, *_: Any) -> None:
        with self._changed:
            self._subscribed = True
            self._changed.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            if self.take is not None:
                self.take(message)
            self.messages.append(message)
            self._changed.notify_all()

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        with self._changed:
            self.published[mid] = code
            self._changed.notify_all()
