"""When each replica reported last: totals of the past promote nothing."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Reports from before this migration have none: they were made before this process began.
    op.add_column("rollout_reports", sa.Column("reported_at", sa.String(32)))


def downgrade() -> None:
    op.drop_column("rollout_reports", "reported_at")
