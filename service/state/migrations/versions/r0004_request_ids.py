"""Ids of served requests as long as the protocol takes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Widens the column."""
    with op.batch_alter_table("served") as batch:
        batch.alter_column(
            "request", existing_type=sa.String(128), type_=sa.String(256), existing_nullable=False
        )
