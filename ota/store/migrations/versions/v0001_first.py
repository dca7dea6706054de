"""The first tables: devices, boots, batches, alarms, rejects."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    _devices()
    _boots()
    _batches()
    _alarms()
    _alarm_states()
    _rejects()


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("first_received_ms", _BIG, nullable=False),
        sa.Column("last_received_ms", _BIG, nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column("state_received_ms", _BIG, nullable=True),
        sa.Column("boot", sa.Text(), nullable=True),
        sa.Column("connection", _BIG, nullable=True),
        sa.Column("birth_ms", _BIG, nullable=True),
        sa.Column("birth_alarms", sa.Text(), nullable=True),
        sa.Column("details", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
        sa.UniqueConstraint("device", "tenant", name=op.f("uq_devices_device_tenant")),
        sqlite_autoincrement=True,
    )


def _boots() -> None:
    op.create_table(
        "boots",
        sa.Column("device_id", _BIG, nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("stored", sa.Text(), nullable=False),
        sa.Column("first_received_ms", _BIG, nullable=False),
        sa.Column("last_received_ms", _BIG, nullable=False),
        sa.Column("born", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_boots_device_id")),
        sa.PrimaryKeyConstraint("device_id", "boot", name=op.f("pk_boots")),
    )


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("device_id", _BIG, nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("clock", sa.Text(), nullable=False),
        sa.Column("seq", sa.Text(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("first_ms", _BIG, nullable=False),
        sa.Column("last_ms", _BIG, nullable=False),
        sa.Column("received_ms", _BIG, nullable=False),
        sa.Column("encoding", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_batches_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_batches_device_id_id", "batches", ["device_id", "id"], unique=False)
    op.create_index(op.f("ix_batches_received_ms"), "batches", ["received_ms"], unique=False)


def _alarms() -> None:
    op.create_table(
        "alarms",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("device_id", _BIG, nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("time_ms", _BIG, nullable=False),
        sa.Column("clock", sa.Text(), nullable=False),
        sa.Column("alarm", sa.Text(), nullable=False),
        sa.Column("reading", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("received_ms", _BIG, nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_alarms_device_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alarms")),
        sa.UniqueConstraint("device_id", "boot", "seq", name=op.f("uq_alarms_device_id_boot_seq")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_alarms_received_ms"), "alarms", ["received_ms"], unique=False)


def _alarm_states() -> None:
    op.create_table(
        "alarm_states",
        sa.Column("device_id", _BIG, nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("alarm", sa.Text(), nullable=False),
        sa.Column("reading", sa.Text(), nullable=False),
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("time_ms", _BIG, nullable=False),
        sa.Column("raised", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_alarm_states_device_id")
        ),
        sa.PrimaryKeyConstraint(
            "device_id", "boot", "alarm", "reading", name=op.f("pk_alarm_states")
        ),
    )


def _rejects() -> None:
    op.create_table(
        "rejects",
        sa.Column("id", _BIG, nullable=False),
        sa.Column("received_ms", _BIG, nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("size_bytes", _BIG, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejects")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_rejects_received_ms"), "rejects", ["received_ms"], unique=False)
