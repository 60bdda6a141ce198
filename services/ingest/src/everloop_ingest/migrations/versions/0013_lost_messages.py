"""How many messages of a partition were gone before they were settled."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Adds the column; what was lost before is in the log only."""
    lost = sa.Column("lost", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("positions", lost)


def downgrade() -> None:
    """Drops it."""
    op.drop_column("positions", "lost")
