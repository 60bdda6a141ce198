"""Versions are known from their registration on: one on trial was never promoted."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("versions") as table:
        table.alter_column("promoted_at", existing_type=sa.DateTime(), nullable=True)


def downgrade() -> None:
    op.execute("DELETE FROM versions WHERE promoted_at IS NULL")
    with op.batch_alter_table("versions") as table:
        table.alter_column("promoted_at", existing_type=sa.DateTime(), nullable=False)
