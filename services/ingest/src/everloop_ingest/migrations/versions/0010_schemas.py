"""The schemas that pipelines were served with."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0007"


def upgrade() -> None:
    """Makes the table; what a pipeline is served with next is its first schema here."""
    op.create_table(
        "schemas",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("schemas")
