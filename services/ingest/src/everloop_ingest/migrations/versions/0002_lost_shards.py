"""Shards that the object store has lost, and why a version failed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds the columns; nothing is lost yet."""
    lost = sa.Column("lost", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("shards", lost)
    op.add_column("versions", sa.Column("error", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Drops the columns."""
    op.drop_column("versions", "error")
    op.drop_column("shards", "lost")
