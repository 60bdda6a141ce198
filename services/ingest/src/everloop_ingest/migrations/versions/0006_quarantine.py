"""Versions in quarantine: what they are judged by, and what people did."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Adds column and table; what was announced before is judged by nothing."""
    op.add_column("versions", sa.Column("profile", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "audit",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )
    op.create_index("audit_of_version", "audit", ["pipeline", "version"])


def downgrade() -> None:
    """Drops them."""
    op.drop_table("audit")
    op.drop_column("versions", "profile")
