"""What the cloud signs for devices: configurations and commands (``docs/remote-config.md``).

The payloads of ``edgekit.contracts.envelope``. A media type tells which kind a payload is, and is
signed with it. ``counter`` rises strictly: within an audience for configurations, within a device
for commands. Times are milliseconds since 1970 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from edgekit.contracts.fields import show
from edgekit.contracts.message import Message
from edgekit.contracts.topics import Device, check_segment
from edgekit.errors import MessageError

CONFIGURATION_TYPE: Final = "application/vnd.edgekit.configuration+json"
COMMAND_TYPE: Final = "application/vnd.edgekit.command+json"
AUDIENCES: Final = ("device", "cohort")
"""Whom a configuration is for: one device, or all that count themselves among a cohort."""


@dataclass(frozen=True, slots=True)
class Audience:
    """Whom a configuration is for.

    Attributes:
        kind: One of :data:`AUDIENCES`.
        name: Of the device or the cohort.
    """

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in AUDIENCES:
            raise MessageError(f"audience {show(self.kind)} is not one of {', '.join(AUDIENCES)}")
        check_segment(self.name, f"audience: {self.kind}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Audience:
        """Read the JSON form: one key, ``device`` or ``cohort``, and the name.

        Raises:
            MessageError: It is none.
        """
        if len(data) != 1:
            raise MessageError("audience names not exactly one of device and cohort")
        return cls(*next(iter(data.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration(Message):
    """Settings for a device or a cohort; a later one takes the place of an earlier.

    Attributes:
        tenant: Whose fleet.
        audience: Whom in it.
        counter: Above that of the one before, from 1.
        issued_ms: When it was signed.
        expires_ms: From when on no device takes it up. One that has it keeps it.
        settings: Tables of ``edgekit.contracts.remote_settings``.
    """

    NAME: ClassVar[str] = "configuration"
    FIELDS: ClassVar[Mapping[str, str]] = {
        "tenant": "name",
        **dict.fromkeys(("audience", "settings"), "object"),
        **dict.fromkeys(("counter", "expires_ms"), "positive"),
        "issued_ms": "count",
    }
    TYPE: ClassVar[str] = CONFIGURATION_TYPE

    tenant: str
    audience: Audience
    counter: int
    issued_ms: int
    expires_ms: int
    settings: Mapping[str, Any]

    @property
    def scope(self) -> str:
        """Within what the counter rises."""
        return f"configuration:{self.audience}"

    def _written(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.FIELDS},
            "audience": {self.audience.kind: self.audience.name},
            "settings": dict(self.settings),
        }

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        check_segment(data["tenant"], f"{cls.NAME}: tenant")
        _check_times(data, cls.NAME)
        return {
            **{name: data[name] for name in cls.FIELDS},
            "audience": Audience.from_dict(data["audience"]),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Message):
    """Something that one device is to do once.

    Attributes:
        id: Its name, also the notice's.
        tenant: Whose fleet.
        device: Which device of it.
        counter: Above that of the device's command before, from 1.
        issued_ms: When it was signed.
        expires_ms: From when on it is not done any more.
        command: What to do; ``edgekit.contracts.telemetry.COMMANDS``, or a newer one.
        arguments: Of the command, checked by who does it.
    """

    NAME: ClassVar[str] = "command"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("id", "tenant", "device", "command"), "name"),
        **dict.fromkeys(("counter", "expires_ms"), "positive"),
        "issued_ms": "count",
        "arguments": "object",
    }
    TYPE: ClassVar[str] = COMMAND_TYPE

    id: str
    tenant: str
    device: str
    counter: int
    issued_ms: int
    expires_ms: int
    command: str
    arguments: Mapping[str, Any]

    @property
    def scope(self) -> str:
        """Within what the counter rises."""
        return "command"

    @property
    def addressee(self) -> Device:
        """Whom it is for."""
        return Device(self.tenant, self.device)

    def _written(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in self.FIELDS},
            "arguments": dict(self.arguments),
        }

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        for name in ("id", "tenant", "device", "command"):
            check_segment(data[name], f"{cls.NAME}: {name}")
        _check_times(data, cls.NAME)
        return {name: data[name] for name in cls.FIELDS}


Document = Configuration | Command
DOCUMENTS: Final[Mapping[str, type[Configuration | Command]]] = {
    Configuration.TYPE: Configuration,
    Command.TYPE: Command,
}
"""Media type of a payload to what reads it."""


def _check_times(data: Mapping[str, Any], where: str) -> None:
    if data["expires_ms"] <= data["issued_ms"]:
        raise MessageError(f"{where}: expires_ms is not after issued_ms")
