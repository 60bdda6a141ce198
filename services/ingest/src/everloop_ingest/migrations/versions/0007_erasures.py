"""Records that people asked to erase."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "erasures",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("version", sa.BigInteger),
        sa.Column("record_ids", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("erasures")
