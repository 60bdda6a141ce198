"""Why a chunk was given up."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("chunks", sa.Column("failure", sa.Text))


def downgrade() -> None:
    op.drop_column("chunks", "failure")
