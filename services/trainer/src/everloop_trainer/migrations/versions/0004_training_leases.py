"""Who may train a pipeline."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.leases import lease_table

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    lease_table("training_leases", sa.MetaData()).create(op.get_bind())


def downgrade() -> None:
    op.drop_table("training_leases")
