"""The MQTT topics between a device and the cloud, written and read (``docs/telemetry.md``).

The shape is thin-edge.io's (``te/device/<id>/.../<channel>/<type>[/<id>]``) with the tenant before
the device, so that one access rule holds a device to its own topics:

    ek/<tenant>/device/<device>/<channel>/<type>[/<id>]

| channel | direction | type | id |
|---|---|---|---|
| ``m`` measurements | up | ``batch``, ``sample`` | |
| ``a`` alarms | up | the alarm's name | |
| ``status`` birth, health and will, retained | up | ``health`` | |
| ``ack`` what the store holds | down | ``store`` | |
| ``cmd`` notice that something waits to be fetched | down | the command | the notice's |

Source of the shape: github.com/thin-edge/thin-edge.io docs/src/references/mqtt-api.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.contracts.fields import show
from edgekit.errors import MessageError

ROOT = "ek"
UP = ("m", "a", "status")
"""Channels that devices publish."""
DOWN = ("ack", "cmd")
"""Channels that the cloud publishes."""
WITH_ID = ("cmd",)
"""Channels whose topics end in an id; the others have none."""
TYPES = {"m": ("batch", "sample"), "status": ("health",), "ack": ("store",)}
"""Channels with a closed set of types; others take any segment."""
MAX_SEGMENT_CHARS = 64
SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""One level: no wildcard, no ``$``, nothing that a file name or a label could not hold."""


def check_segment(text: object, what: str) -> str:
    """Return a text that can be one level of a topic.

    Raises:
        MessageError: It cannot; names it as ``what``.
    """
    if not isinstance(text, str) or SEGMENT.fullmatch(text) is None:
        raise MessageError(
            f"{what} {show(text)} is not 1 to {MAX_SEGMENT_CHARS} of A-Z a-z 0-9 . _ - that begin "
            "with a letter or digit"
        )
    return text


@dataclass(frozen=True, slots=True)
class Device:
    """Who publishes.

    Attributes:
        tenant: Whose fleet it belongs to.
        device: Its name, unique in the tenant.
    """

    tenant: str
    device: str

    def __post_init__(self) -> None:
        check_segment(self.tenant, "tenant")
        check_segment(self.device, "device")

    @property
    def path(self) -> str:
        """Its identity in certificates and as MQTT user name and client id: what ``ek/`` begins."""
        return f"{self.tenant}/device/{self.device}"

    @property
    def down_filters(self) -> tuple[str, ...]:
        """Topic filters that the device subscribes to."""
        return tuple(
            f"{ROOT}/{self.path}/{channel}/" + ("+/+" if channel in WITH_ID else "+")
            for channel in DOWN
        )


def up_filters(tenant: str = "+") -> tuple[str, ...]:
    """Return topic filters of all that devices publish.

    Args:
        tenant: Whose; ``+`` for everyone's.

    Raises:
        MessageError: It is no tenant's name.
    """
    if tenant != "+":
        check_segment(tenant, "tenant")
    return tuple(f"{ROOT}/{tenant}/device/+/{channel}/+" for channel in UP)


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    Attributes:
        device: Whose it is.
        channel: One of :data:`UP` and :data:`DOWN`.
        type: What kind of message.
        id: Of the notice, in channels :data:`WITH_ID`; else None.
    """

    device: Device
    channel: str
    type: str
    id: str | None = None

    def __post_init__(self) -> None:
        if self.channel not in (*UP, *DOWN):
            raise MessageError(
                f"channel {show(self.channel)} is not one of {', '.join((*UP, *DOWN))}"
            )
        check_segment(self.type, "type")
        allowed = TYPES.get(self.channel)
        if allowed is not None and self.type not in allowed:
            raise MessageError(f"channel {self.channel} has no type {show(self.type)}")
        if (self.id is not None) != (self.channel in WITH_ID):
            raise MessageError(
                f"topics of channel {self.channel} {'need an' if self.id is None else 'have no'} id"
            )
        if self.id is not None:
            check_segment(self.id, "id")

    def __str__(self) -> str:
        parts = [ROOT, self.device.path, self.channel, self.type, self.id]
        return "/".join(part for part in parts if part is not None)

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Read a topic; the inverse of ``str``.

        Raises:
            MessageError: It is none of this grammar.
        """
        levels = text.split("/")
        if len(levels) not in {6, 7} or (levels[0], levels[2]) != (ROOT, "device"):
            raise MessageError(f"topic {show(text)} is not {ROOT}/TENANT/device/DEVICE/CHANNEL/...")
        _, tenant, _, device, *rest = levels
        return cls(Device(tenant, device), *rest)
