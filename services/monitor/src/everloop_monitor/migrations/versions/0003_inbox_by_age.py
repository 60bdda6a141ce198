"""An index by which the oldest ids of the inbox are found: every batch of predictions leaves one."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index("inbox_by_age", "inbox", ["received_at"])


def downgrade() -> None:
    op.drop_index("inbox_by_age")
