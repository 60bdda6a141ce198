"""Requests are remembered for a time: the age of cut requests, and the answers of push requests."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Adds column and table; what is known already counts from now."""
    op.add_column("cut_requests", sa.Column("create_time", sa.DateTime))
    requests = sa.table("cut_requests", sa.column("create_time", sa.DateTime))
    op.execute(requests.update().values(create_time=datetime.now(UTC).replace(tzinfo=None)))
    with op.batch_alter_table("cut_requests") as table:  # SQLite alters no column in place
        table.alter_column("create_time", existing_type=sa.DateTime(), nullable=False)
    op.create_table(
        "push_requests",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("rejections", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )
    for name in ("cut_requests", "push_requests"):
        op.create_index(f"{name}_by_time", name, ["create_time"])


def downgrade() -> None:
    """Drops them."""
    op.drop_table("push_requests")
    op.drop_index("cut_requests_by_time", "cut_requests")
    op.drop_column("cut_requests", "create_time")
