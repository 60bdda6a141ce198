"""Who may cut a pipeline's next version."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "cut_leases",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("cut_leases")
