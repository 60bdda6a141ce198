"""The trace that each batch came with, which the version that it goes into goes on with."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Adds the column; what is stored already has no trace."""
    op.add_column("shards", sa.Column("trace", sa.String, nullable=False, server_default=""))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("shards", "trace")
