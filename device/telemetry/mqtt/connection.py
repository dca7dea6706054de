"""One connection to the broker: a paho client, a thread, and the events that come of it.

Every connection has a client of its own. paho would keep what is unacknowledged in memory and send
it again by packet identifier after a reconnect; here the ring does that (ADR 18), and a new client
reads renewed certificates, knows no old topic alias and keeps no half-read packet.

paho is driven by its interface for other event loops (``loop_read``, ``loop_write``,
``loop_misc``): its own thread ends without a word on some errors and selects on no file descriptor
above 1023. This one says :class:`Ended` whatever happens.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from device.telemetry.mqtt.events import Arrived, Connected, Delivered, Ended, Event, Subscribed
from device.telemetry.mqtt.reasons import Reason
from device.telemetry.mqtt.tls import ResumingContext, TlsContexts
from device.telemetry.sensors.tcp_info import Links
from edgekit.errors import TelemetryError, first_line

logger = logging.getLogger(__name__)

LINK = "mqtt"
"""Label of the connection's TCP counters."""
RECEIVE_MAXIMUM = 16
"""Messages that the broker may send before they are taken in."""
MAX_INCOMING_BYTES = 128 * 1024
"""Largest packet that the broker may send: an acknowledgement of 64 KiB and its properties."""
WINDOW = 16
"""Publishes on their way at once, whatever the broker would take."""
CONNECT_S = 10.0
"""For each of TCP's and TLS's steps."""
USER_TIMEOUT_MS = 30_000
"""Sent bytes that stay unacknowledged for this long end the connection (TCP_USER_TIMEOUT)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect, and how.

    Attributes:
        host: The broker's name, which its certificate must have, or address.
        port: Its port.
        client_id: This device's identity.
        keepalive_s: Longest silence before a ping.
        session_expiry_s: How long the broker keeps the session without a connection.
        will_delay_s: How long after a loss the will is published.
        look_s: How late a ping may be.
    """

    host: str
    port: int
    client_id: str
    keepalive_s: int = 240
    session_expiry_s: int = 86_400
    will_delay_s: int = 60
    look_s: float = 1.0


class Connection:
    """One try of a connection, and the connection that may come of it.

    Args:
        endpoint: Where to.
        contexts: TLS; None for none, which tests alone use.
        will: Topic and payload of the will, which is retained.
        tell: Takes events in; called in the connection's thread.
        links: Counts the socket's bytes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        contexts: TlsContexts | None,
        will: tuple[str, bytes],
        tell: Callable[[Event], None],
        links: Links,
    ) -> None:
        self._endpoint, self._contexts, self._tell, self._links = endpoint, contexts, tell, links
        self._context: ResumingContext | None = None
        self._reason: Reason | None = None
        self._last_error: str | None = None
        self._handshaking: ssl.SSLSocket | None = None
        self._woken, self._wake_end = socket.socketpair()
        self._wake_end.setblocking(False)
        self._waking = threading.Lock()
        self.client = self._client(will)
        self._thread = threading.Thread(target=self._run, name="telemetry-mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect; :class:`Ended` comes in any case."""
        self._thread.start()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool, properties: Properties | None
    ) -> int | None:
        """Publish with QoS 1; return the packet identifier, None if it cannot be sent now."""
        info = self.client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        self._wake()
        return info.mid if info.rc == mqtt.MQTT_ERR_SUCCESS else None

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe with QoS 1; retained messages come only for a new subscription."""
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        self.client.subscribe([(each, options) for each in filters])
        self._wake()

    def acknowledge(self, message: Arrived) -> None:
        """Send the PUBACK of a message that was taken in."""
        self.client.ack(message.packet, message.qos)
        self._wake()

    def disconnect(self) -> None:
        """Say goodbye: the broker forgets the will and keeps the session."""
        self.client.disconnect()
        self._wake()

    def cut(self, why: str) -> None:
        """End it without a word, as nothing comes back on it any more."""
        self._reason = self._reason or Reason(why)
        connection = self.client.socket()
        if isinstance(connection, socket.socket):
            try:
                # The TCP side alone: TLS's state is the other thread's.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError as error:
                logger.debug("nothing to cut: %s", error)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; whether it ended (looking a name up cannot be interrupted)."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _client(self, will: tuple[str, bytes]) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            self._endpoint.client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages = WINDOW + 1  # and a goodbye; it is the caller that counts
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_log = self._on_log
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        # Without this paho would write to the socket in whichever thread publishes.
        client.on_socket_register_write = _nothing
        topic, payload = will
        properties = _properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = self._endpoint.will_delay_s
        client.will_set(topic, payload, qos=1, retain=True, properties=properties)
        return client

    def _run(self) -> None:
        """Connect, serve the connection, and say how it ended."""
        failure: Reason | None = None
        try:
            self._connect()
            while self._serve():
                pass
        except TelemetryError as error:
            failure = Reason(f"{error.message}. {error.remedy}", code=0x87)  # as not authorized
        except (OSError, ValueError) as error:  # no route, no such name, TLS; a name that is none
            failure = Reason(first_line(error))
        except Exception as error:  # a packet that paho cannot read, and what nobody foresaw
            logger.exception("the MQTT connection failed")
            failure = Reason(f"{type(error).__name__}: {first_line(error)}")
        finally:
            self._links.forget(LINK)
            if self._handshaking is not None:  # paho leaves a socket open whose handshake failed
                self._handshaking.close()
            with self._waking:
                self._wake_end.close()
                self._woken.close()
            lost = Reason(self._last_error or "the connection was lost")
            self._tell(Ended(self._reason or failure or lost))

    def _serve(self) -> bool:
        """Wait for something to read or write, do it; whether the connection is still there."""
        connection = self.client.socket()
        if not isinstance(connection, socket.socket):
            return False
        # What TLS has decrypted already is on no file descriptor.
        is_pending = isinstance(connection, ssl.SSLSocket) and connection.pending() > 0
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        poll.register(connection, select.POLLIN | (self.client.want_write() and select.POLLOUT))
        ready = dict(poll.poll(0 if is_pending else 1000 * self._endpoint.look_s))
        if self._woken.fileno() in ready:
            self._woken.recv(4096)
        events = ready.get(connection.fileno(), 0)
        is_readable = is_pending or events & ~select.POLLOUT
        if is_readable and self.client.loop_read() != mqtt.MQTT_ERR_SUCCESS:
            return False
        if self.client.want_write() and self.client.loop_write() != mqtt.MQTT_ERR_SUCCESS:
            return False
        return self.client.loop_misc() == mqtt.MQTT_ERR_SUCCESS

    def _wake(self) -> None:
        """Have the connection's thread look for what is to be written."""
        with self._waking, contextlib.suppress(OSError):  # it ended, or was woken often enough
            self._wake_end.send(b"w")

    def _connect(self) -> None:
        if self._contexts is not None:
            self._context = self._contexts.current()
            self._context.opened = self._on_tls_begun
            self.client.tls_set_context(self._context)
        properties = _properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = self._endpoint.session_expiry_s
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_INCOMING_BYTES
        self.client.connect(
            self._endpoint.host,
            self._endpoint.port,
            self._endpoint.keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def _on_log(self, _client: Any, _data: Any, level: int, text: str) -> None:
        """Keep what paho logs of a socket's error: it tells it nowhere else."""
        if level == mqtt.MQTT_LOG_ERR:
            self._last_error = text

    def _on_tls_begun(self, connection: ssl.SSLSocket) -> None:
        """Count the handshake's bytes, too, whether it succeeds or not."""
        self._handshaking = connection
        self._links.watch(LINK, connection)

    def _on_socket_open(self, _client: Any, _data: Any, connection: Any) -> None:
        timeout = getattr(socket, "TCP_USER_TIMEOUT", 18)  # Linux's number
        connection.setsockopt(socket.IPPROTO_TCP, timeout, USER_TIMEOUT_MS)
        if self._context is None:
            self._links.watch(LINK, connection)

    def _on_socket_close(self, _client: Any, _data: Any, connection: Any) -> None:
        self._links.forget(LINK)
        if self._context is not None and isinstance(connection, ssl.SSLSocket):
            self._context.remember(connection)

    def _on_connect(
        self, _client: Any, _data: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        if code.is_failure:
            self._reason = self._reason or _reason(code, properties)
            return
        self._tell(
            Connected(
                bool(flags.session_present),
                min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW)),
                getattr(properties, "MaximumPacketSize", None),
            )
        )

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._reason = self._reason or _reason(code, properties)

    def _on_publish(
        self, _client: Any, _data: Any, packet: int, code: ReasonCode, _properties: Any
    ) -> None:
        self._tell(Delivered(packet, code.value, str(code)))

    def _on_subscribe(
        self, _client: Any, _data: Any, _packet: int, codes: list[ReasonCode], _properties: Any
    ) -> None:
        self._tell(Subscribed(tuple(str(code) for code in codes if code.is_failure)))

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # of no grammar: it is refused and counted where topics are read
        self._tell(Arrived(topic, bytes(message.payload), message.mid, message.qos))


def publish_properties(
    *, encoding: str | None = None, expiry_s: int | None = None
) -> Properties | None:
    """Return the properties of a publish; None for none.

    Args:
        encoding: User property ``content-encoding``.
        expiry_s: After this the broker drops what it could not deliver.
    """
    if encoding is None and expiry_s is None:
        return None
    properties = _properties(PacketTypes.PUBLISH)
    if encoding is not None:
        properties.UserProperty = ("content-encoding", encoding)
    if expiry_s is not None:
        properties.MessageExpiryInterval = expiry_s
    return properties


def _properties(packet: int) -> Properties:
    return Properties(packet)  # type: ignore[no-untyped-call]


def _reason(code: ReasonCode, properties: Any) -> Reason:
    said = getattr(properties, "ReasonString", "")
    text = f"the broker says: {code}" + (f" ({said})" if said else "")
    return Reason(text, code.value, getattr(properties, "ServerReference", None))


def _nothing(*_: object) -> None:
    """Leave writing to the connection's thread."""
