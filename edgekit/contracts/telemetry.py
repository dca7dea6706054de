"""The messages between a device and the cloud (``docs/telemetry.md``).

Every physical field has its unit in its name. Times are milliseconds since 1970 UTC. ``boot`` names
one life of the device's ring: a boot of the kernel, or what follows the loss of the ring's file.
``seq`` counts samples and alarms of a boot together from 1, so (device, boot, seq) names one of
them for ever: whoever stores them drops what it has already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from edgekit.contracts import seq_ranges
from edgekit.contracts.columns import (
    Column,
    decode_columns,
    decode_times,
    encode_columns,
    encode_times,
)
from edgekit.contracts.fields import show
from edgekit.contracts.message import CLOCKS, Message, check_boot, check_one_of
from edgekit.contracts.seq_ranges import Ranges
from edgekit.contracts.series import Number, Values, check_values, is_value, split_name
from edgekit.contracts.topics import check_segment
from edgekit.errors import MessageError

ALARM_STATES = ("raised", "cleared")
SEVERITIES = ("critical", "major", "minor", "warning")
"""As thin-edge.io's."""
LOST, STOPPED = "lost", "stopped"
"""A device's ``details.reason`` for being down: nobody heard of it any more, or it said goodbye."""
HEALTH_STATES = ("up", "down")
COMMANDS = ("config", "job", "live", "logs")
"""Commands that a notice can be about; a device ignores others."""
_MOMENT = {"boot": "name", "time_ms": "count", "clock": "name"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Message):
    """All readings of one instant; what live mode sends.

    Attributes:
        boot: See the module.
        seq: See the module.
        time_ms: When.
        clock: What the time is worth, one of ``CLOCKS``.
        values: The readings.
    """

    NAME: ClassVar[str] = "sample"
    FIELDS: ClassVar[Mapping[str, str]] = {**_MOMENT, "seq": "positive", "values": "object"}

    boot: str
    seq: int
    time_ms: int
    clock: str
    values: Values

    def _written(self) -> dict[str, Any]:
        return {**_moment(self), "seq": self.seq, "values": dict(self.values)}

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        values = check_values(data["values"], cls.NAME)
        return {**_read_moment(data, cls.NAME), "seq": data["seq"], "values": values}


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Message):
    """Samples of one boot and kind of clock, column by column.

    Attributes:
        boot: See the module.
        clock: What the times are worth.
        seq: The samples' numbers, ascending; alarms between them leave gaps.
        times_ms: One a sample.
        columns: Readings, one a sample; None where a sample lacks one.
    """

    NAME: ClassVar[str] = "batch"
    FIELDS: ClassVar[Mapping[str, str]] = {
        "boot": "name",
        "clock": "name",
        "seq": "list",
        "times_ms": "list",
    }
    OPTIONAL: ClassVar[tuple[str, ...]] = ("constants", "deltas", "lists")
    MAX_BYTES: ClassVar[int] = 4 * 1024 * 1024

    boot: str
    clock: str
    seq: Ranges
    times_ms: tuple[int, ...]
    columns: Mapping[str, Column]

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> Batch:
        """Return some samples of one boot and kind of clock, in ascending order of ``seq``."""
        names = sorted({name for sample in samples for name in sample.values})
        return cls(
            boot=samples[0].boot,
            clock=samples[0].clock,
            seq=seq_ranges.ranges_of(sample.seq for sample in samples),
            times_ms=tuple(sample.time_ms for sample in samples),
            columns={name: tuple(s.values.get(name) for s in samples) for name in names},
        )

    def samples(self) -> list[Sample]:
        """Return the samples; each has every column's name."""
        numbers = [seq for first, last in self.seq for seq in range(first, last + 1)]
        rows = zip(*self.columns.values(), strict=True) if self.columns else [()] * len(numbers)
        return [
            Sample(
                boot=self.boot,
                seq=seq,
                time_ms=time_ms,
                clock=self.clock,
                values=dict(zip(self.columns, row, strict=True)),
            )
            for seq, time_ms, row in zip(numbers, self.times_ms, rows, strict=True)
        ]

    def _written(self) -> dict[str, Any]:
        return {
            "boot": self.boot,
            "clock": self.clock,
            "seq": seq_ranges.to_json(self.seq),
            "times_ms": encode_times(self.times_ms),
            **encode_columns(self.columns),
        }

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        times_ms = decode_times(data["times_ms"], f"{cls.NAME}: times_ms")
        seq = seq_ranges.from_json(data["seq"], f"{cls.NAME}: seq")
        if seq_ranges.count(seq) != len(times_ms):
            raise MessageError(
                f"{cls.NAME} has {seq_ranges.count(seq)} numbers for {len(times_ms)} times"
            )
        return {
            "boot": check_boot(data["boot"], cls.NAME),
            "clock": check_one_of(data["clock"], CLOCKS, f"{cls.NAME}: clock"),
            "seq": seq,
            "times_ms": times_ms,
            "columns": decode_columns(data, len(times_ms), cls.NAME),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Message):
    """An alarm that the device has decided, raised or cleared.

    Attributes:
        boot: See the module.
        seq: See the module.
        time_ms: When it was decided.
        clock: What the time is worth.
        alarm: Its name, the topic's type.
        reading: What it is about, with its label (``temperature_celsius.cpu``).
        state: One of ``ALARM_STATES``.
        severity: One of ``SEVERITIES``.
        value: The reading at that time.
        threshold: What it passed.
    """

    NAME: ClassVar[str] = "alarm"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **_MOMENT,
        "seq": "positive",
        **dict.fromkeys(("alarm", "reading", "state", "severity"), "name"),
        **dict.fromkeys(("value", "threshold"), "number"),
    }

    boot: str
    seq: int
    time_ms: int
    clock: str
    alarm: str
    reading: str
    state: str
    severity: str
    value: Number
    threshold: Number

    def _written(self) -> dict[str, Any]:
        names = ("seq", "alarm", "reading", "state", "severity", "value", "threshold")
        return {**_moment(self), **{name: getattr(self, name) for name in names}}

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        check_segment(data["alarm"], f"{cls.NAME}: alarm")
        check_one_of(data["state"], ALARM_STATES, f"{cls.NAME}: state")
        check_one_of(data["severity"], SEVERITIES, f"{cls.NAME}: severity")
        split_name(data["reading"])
        names = ("seq", "alarm", "reading", "state", "severity", "value", "threshold")
        return {**_read_moment(data, cls.NAME), **{name: data[name] for name in names}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Health(Message):
    """Birth (``up``, after every connect) and will (``down``); retained.

    A birth ends every alarm of the device that it does not list: a device that restarted decides
    anew. A will is written at connect, so its time is not that of the loss.

    Attributes:
        boot: See the module.
        time_ms: When it was written.
        clock: What the time is worth.
        state: One of ``HEALTH_STATES``.
        connection: Grows with every connect of a boot: a late will is one of an earlier connection.
        alarms: Raised now, as ``alarm:reading``; a will has none.
        details: Facts that seldom change: versions, board, what encodings it writes; short texts
            and numbers.
    """

    NAME: ClassVar[str] = "health"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **_MOMENT,
        "state": "name",
        "connection": "positive",
        "alarms": "list",
        "details": "object",
    }

    boot: str
    time_ms: int
    clock: str
    state: str
    connection: int
    alarms: tuple[str, ...] = ()
    details: Mapping[str, str | Number | None]

    def _written(self) -> dict[str, Any]:
        return {
            **_moment(self),
            "state": self.state,
            "connection": self.connection,
            "alarms": list(self.alarms),
            "details": dict(self.details),
        }

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        check_one_of(data["state"], HEALTH_STATES, f"{cls.NAME}: state")
        for alarm in data["alarms"]:
            if not isinstance(alarm, str) or ":" not in alarm:
                raise MessageError(f"{cls.NAME}: {show(alarm)} is not ALARM:READING")
        for name, value in data["details"].items():
            if not (isinstance(value, str) or is_value(value)):
                raise MessageError(f"{cls.NAME}: detail {show(name)} is not a text or number")
        return {
            **_read_moment(data, cls.NAME),
            "state": data["state"],
            "connection": data["connection"],
            "alarms": tuple(data["alarms"]),
            "details": data["details"],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAcknowledgement(Message):
    """What the store holds for good: the device may forget it.

    Attributes:
        stored: Boot to the numbers that a database has committed.
    """

    NAME: ClassVar[str] = "store acknowledgement"
    FIELDS: ClassVar[Mapping[str, str]] = {"stored": "object"}

    stored: Mapping[str, Ranges]

    def _written(self) -> dict[str, Any]:
        return {"stored": {boot: seq_ranges.to_json(seq) for boot, seq in self.stored.items()}}

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "stored": {
                check_boot(boot, cls.NAME): seq_ranges.from_json(seq, f"{cls.NAME}: {show(boot)}")
                for boot, seq in data["stored"].items()
            }
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandNotice(Message):
    """Says that something waits for the device; it fetches it, signed, and trusts only that.

    Attributes:
        id: The topic's id: a notice that comes twice is one.
        command: One of ``COMMANDS``, or a newer one.
        issued_ms: When it was sent, for the log.
        expires_ms: When it has no meaning any more.
    """

    NAME: ClassVar[str] = "command notice"
    FIELDS: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("id", "command"), "name"),
        **dict.fromkeys(("issued_ms", "expires_ms"), "count"),
    }

    id: str
    command: str
    issued_ms: int
    expires_ms: int

    def _written(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.FIELDS}

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        check_segment(data["id"], f"{cls.NAME}: id")
        check_segment(data["command"], f"{cls.NAME}: command")
        return {name: data[name] for name in cls.FIELDS}


def _moment(message: Sample | Alarm | Health) -> dict[str, Any]:
    return {name: getattr(message, name) for name in _MOMENT}


def _read_moment(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    check_boot(data["boot"], where)
    check_one_of(data["clock"], CLOCKS, f"{where}: clock")
    return {name: data[name] for name in _MOMENT}
