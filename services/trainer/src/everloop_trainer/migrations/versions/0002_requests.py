"""Requests for a training, noted before a version is cut for them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("cause_id", sa.String(200), primary_key=True),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("requests")
