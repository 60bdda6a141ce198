"""Who may cut a pipeline's next version."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.leases import lease_table

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Makes the table."""
    lease_table("cut_leases", sa.MetaData()).create(op.get_bind())


def downgrade() -> None:
    """Drops it."""
    op.drop_table("cut_leases")
