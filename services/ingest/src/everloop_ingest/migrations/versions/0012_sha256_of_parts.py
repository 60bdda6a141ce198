"""What Git LFS knows parts by."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Adds the column; parts so far are DVC's, which needs no other than their MD5."""
    op.add_column("parts", sa.Column("sha256", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Drops it."""
    op.drop_column("parts", "sha256")
