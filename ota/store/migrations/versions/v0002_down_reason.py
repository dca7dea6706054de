"""Why a device is down: it said goodbye, or was lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of a device that is down already nobody knows why until it says so."""
    op.add_column("devices", sa.Column("down_reason", sa.Text(), nullable=True))
