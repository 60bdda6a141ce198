"""The evidence of decisions, and what became of requests."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

DECISIONS = (
    sa.Column("request_id", sa.String(36), nullable=False, server_default=""),
    sa.Column("condition", sa.String(40), nullable=False, server_default=""),
    sa.Column("severity", sa.Float, nullable=False, server_default="0"),
    sa.Column("evidence", sa.Text, nullable=False, server_default="[]"),
)
REQUESTS = (
    sa.Column("condition", sa.String(40), nullable=False, server_default=""),
    sa.Column("badness", sa.Float, nullable=False, server_default="0"),
    sa.Column("outcome", sa.String(16), nullable=False, server_default="open"),
    sa.Column("answer", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("helped", sa.Boolean),
)


def upgrade() -> None:
    for table, columns in (("decisions", DECISIONS), ("requests", REQUESTS)):
        for column in columns:
            op.add_column(table, column._copy())


def downgrade() -> None:
    for table, columns in (("requests", REQUESTS), ("decisions", DECISIONS)):
        for column in reversed(columns):
            op.drop_column(table, column.name)
