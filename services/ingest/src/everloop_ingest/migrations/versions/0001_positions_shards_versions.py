"""Positions of the writer, shards with their books, dataset versions; inbox and outbox."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.database import runtime_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Makes all tables."""
    op.create_table(
        "positions",
        sa.Column("topic", sa.String(249), primary_key=True),
        sa.Column("partition", sa.Integer, primary_key=True),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "shards",
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
        sa.Column("accepted", sa.BigInteger, nullable=False),
        sa.Column("actuals", sa.BigInteger, nullable=False),
        sa.Column("rejected", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("first_event_time", sa.DateTime),
        sa.Column("last_event_time", sa.DateTime),
        sa.Column("create_time", sa.DateTime, nullable=False),
        sa.Column("first_version", sa.BigInteger),
        sa.UniqueConstraint("topic", "partition", "first_offset"),
    )
    op.create_index("shards_of_version", "shards", ["pipeline", "first_version"])
    op.create_table(
        "rejections",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("reason", sa.String(63), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("cause_id", sa.String(200), nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
        sa.Column("shards", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger),
        sa.Column("labelled_rows", sa.BigInteger),
        sa.Column("first_event_time", sa.DateTime),
        sa.Column("last_event_time", sa.DateTime),
        sa.Column("path", sa.Text),
        sa.Column("uri", sa.Text),
        sa.Column("md5", sa.String(32)),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("tag", sa.Text),
        sa.Column("commit", sa.String(64)),
    )
    op.create_table(
        "cut_requests",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drops all tables."""
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.drop_all(op.get_bind())
    for table in ("cut_requests", "versions", "rejections", "shards", "positions"):
        op.drop_table(table)
