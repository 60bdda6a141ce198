"""What each request to erase records was for, so that its id cannot stand for another one."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Adds the column; nothing is the same as what was asked before, so that a repeat of it is refused."""
    op.add_column("erasures", sa.Column("digest", sa.LargeBinary))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("erasures", "digest")
