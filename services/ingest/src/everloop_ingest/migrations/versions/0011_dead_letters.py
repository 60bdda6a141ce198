"""Where dead letters are kept, which of them were replayed, and by which request."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Makes the tables; what was rejected before is on the dead-letter topic only."""
    op.create_table(
        "dead_letter_files",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("last_offset", sa.BigInteger, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
        sa.UniqueConstraint("topic", "partition", "first_offset"),
        sqlite_autoincrement=True,  # page tokens hold it: it must not come again
    )
    op.create_index("dead_letter_files_of_pipeline", "dead_letter_files", ["pipeline", "id"])
    op.create_index("dead_letter_files_by_time", "dead_letter_files", ["create_time"])
    op.create_table(
        "replays",
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("request_id", sa.String(200), nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )
    op.create_table(
        "replay_requests",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("replayed", sa.BigInteger, nullable=False),
        sa.Column("skipped", sa.BigInteger, nullable=False),
        sa.Column("next_page_token", sa.String(100), nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
    )
    op.create_index("replay_requests_by_time", "replay_requests", ["create_time"])


def downgrade() -> None:
    """Drops them."""
    for table in ("replay_requests", "replays", "dead_letter_files"):
        op.drop_table(table)
