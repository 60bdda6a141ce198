"""When the cancellation of a training was asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("trainings", sa.Column("cancel_time", sa.DateTime))


def downgrade() -> None:
    op.drop_column("trainings", "cancel_time")
