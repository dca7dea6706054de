"""The tables of the store, as SQLAlchemy models; ``migrations`` makes them.

All times are milliseconds since 1970 UTC. Names ending in ``received_ms`` are the cloud's clock,
the others the device's. Texts that hold JSON are written and read by this package alone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_BIG = BigInteger().with_variant(Integer, "sqlite")
"""64 bits in both; SQLite numbers rows by itself in a column of type INTEGER alone."""


class Base(DeclarativeBase):
    """The base; names of constraints are fixed, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DeviceTable(Base):
    """One row a device: what its last birth and will said. The row is what workers lock.

    ``boot``, ``connection`` and ``state`` are null until a birth or will has come.
    """

    __tablename__ = "devices"
    __table_args__ = (
        # The device first: it is what tells rows apart, and many are looked up at once.
        UniqueConstraint("device", "tenant"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(Text)
    first_received_ms: Mapped[int] = mapped_column(_BIG)
    last_received_ms: Mapped[int] = mapped_column(_BIG)
    state: Mapped[str | None] = mapped_column(Text)
    state_received_ms: Mapped[int | None] = mapped_column(_BIG)
    down_reason: Mapped[str | None] = mapped_column(Text)
    """Why it is down, as its will or goodbye says; null while it is up, or if neither says."""
    boot: Mapped[str | None] = mapped_column(Text)
    connection: Mapped[int | None] = mapped_column(_BIG)
    birth_ms: Mapped[int | None] = mapped_column(_BIG)
    birth_alarms: Mapped[str | None] = mapped_column(Text)
    """JSON list of ``ALARM:READING``: what the last birth said is raised."""
    details: Mapped[str | None] = mapped_column(Text)
    """JSON object: the details of the last birth."""


class BootTable(Base):
    """The numbers that are stored of a boot of a device, as ranges; never a high-water mark."""

    __tablename__ = "boots"

    device_id: Mapped[int] = mapped_column(_BIG, ForeignKey("devices.id"), primary_key=True)
    boot: Mapped[str] = mapped_column(Text, primary_key=True)
    stored: Mapped[str] = mapped_column(Text)
    """JSON list of pairs [first, last]."""
    first_received_ms: Mapped[int] = mapped_column(_BIG)
    last_received_ms: Mapped[int] = mapped_column(_BIG)
    born: Mapped[bool] = mapped_column()
    """Whether a birth of it has been taken: one that comes after another boot's is stale."""


class BatchTable(Base):
    """Samples as the device packed them; no sample is in two rows.

    ``id`` rises in the order of commits and is never given twice: it is the exporters' cursor.
    """

    __tablename__ = "batches"
    __table_args__ = (
        Index("ix_batches_device_id_id", "device_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    device_id: Mapped[int] = mapped_column(_BIG, ForeignKey("devices.id"))
    boot: Mapped[str] = mapped_column(Text)
    clock: Mapped[str] = mapped_column(Text)
    seq: Mapped[str] = mapped_column(Text)
    """JSON list of pairs [first, last]."""
    samples: Mapped[int] = mapped_column(Integer)
    first_ms: Mapped[int] = mapped_column(_BIG)
    last_ms: Mapped[int] = mapped_column(_BIG)
    received_ms: Mapped[int] = mapped_column(_BIG, index=True)
    encoding: Mapped[str] = mapped_column(Text)
    payload: Mapped[bytes] = mapped_column(LargeBinary)


class AlarmTable(Base):
    """Every alarm that was raised or cleared."""

    __tablename__ = "alarms"
    __table_args__ = (
        UniqueConstraint("device_id", "boot", "seq"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    device_id: Mapped[int] = mapped_column(_BIG, ForeignKey("devices.id"))
    boot: Mapped[str] = mapped_column(Text)
    seq: Mapped[int] = mapped_column(_BIG)
    time_ms: Mapped[int] = mapped_column(_BIG)
    clock: Mapped[str] = mapped_column(Text)
    alarm: Mapped[str] = mapped_column(Text)
    reading: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    severity: Mapped[str] = mapped_column(Text)
    value: Mapped[float] = mapped_column()
    threshold: Mapped[float] = mapped_column()
    received_ms: Mapped[int] = mapped_column(_BIG, index=True)


class AlarmStateTable(Base):
    """The newest row of ``alarms`` for each alarm and reading of a device's boot."""

    __tablename__ = "alarm_states"

    device_id: Mapped[int] = mapped_column(_BIG, ForeignKey("devices.id"), primary_key=True)
    boot: Mapped[str] = mapped_column(Text, primary_key=True)
    alarm: Mapped[str] = mapped_column(Text, primary_key=True)
    reading: Mapped[str] = mapped_column(Text, primary_key=True)
    seq: Mapped[int] = mapped_column(_BIG)
    time_ms: Mapped[int] = mapped_column(_BIG)
    raised: Mapped[bool] = mapped_column()
    active: Mapped[bool] = mapped_column()
    """Raised, and not ended by a birth."""


class RejectTable(Base):
    """Messages that were refused; the newest alone are kept, and their beginnings."""

    __tablename__ = "rejects"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(_BIG, primary_key=True)
    received_ms: Mapped[int] = mapped_column(_BIG, index=True)
    topic: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    """One of a few words, which counters have as their label."""
    error: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(_BIG)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
