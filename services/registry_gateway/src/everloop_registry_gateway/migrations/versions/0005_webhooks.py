"""The outbox of webhooks: entries of the audit trail that receivers are still to be told of."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "webhooks",
        sa.Column("entry", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_time", sa.String(32), nullable=False, index=True),
    )


def downgrade() -> None:
    op.drop_table("webhooks")
