"""Shards whose object was deleted since their rows are in a version."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds the column; nothing is deleted yet."""
    reclaimed = sa.Column("reclaimed", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("shards", reclaimed)
    # The scheduler looks for them every few seconds.
    op.create_index("shards_to_reclaim", "shards", ["pipeline", "reclaimed", "merged"])


def downgrade() -> None:
    """Drops it."""
    op.drop_index("shards_to_reclaim", "shards")
    op.drop_column("shards", "reclaimed")
