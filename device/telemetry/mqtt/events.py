"""What a connection tells: made in the network's thread, taken in by the telemetry's."""

from __future__ import annotations

from dataclasses import dataclass

from device.telemetry.mqtt.reasons import Reason


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker has accepted the connection.

    Attributes:
        session_present: Whether it still had this device's session.
        window: Publishes that it takes without having acknowledged them.
        max_packet_bytes: Largest packet that it takes; None for any.
    """

    session_present: bool
    window: int
    max_packet_bytes: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection, or the try of one, is over.

    Attributes:
        reason: Why.
    """

    reason: Reason


@dataclass(frozen=True, slots=True)
class Delivered:
    """A PUBACK.

    Attributes:
        packet: The publish's packet identifier.
        code: Reason code; from 0x80 on the broker has refused it.
        text: The code in words.
    """

    packet: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A SUBACK.

    Attributes:
        refused: Reason codes in words of the filters that were refused.
    """

    refused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message of the broker; it is acknowledged once it was taken in.

    Attributes:
        topic: Its topic.
        payload: Its payload.
        packet: Packet identifier.
        qos: Quality of service.
    """

    topic: str
    payload: bytes
    packet: int
    qos: int


Event = Connected | Ended | Delivered | Subscribed | Arrived
