"""The monitor's first tables."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.database import runtime_tables

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.create_all(op.get_bind())
    op.create_table(
        "streams",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("chunks", sa.BigInteger, nullable=False),
        sa.Column("chunk_start", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.String(200), nullable=False),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("first_row", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_index("batches_by_row", "batches", ["pipeline", "version", "first_row", "rows"])
    op.create_index("batches_by_age", "batches", ["pipeline", "id", "rows"])
    op.create_table(
        "spans",
        sa.Column("epoch", sa.String(16), primary_key=True),
        sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("batch_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("spans_by_batch", "spans", ["batch_id"])
    op.create_table(
        "actuals",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("record_id", sa.String(512), primary_key=True),
        sa.Column("label", sa.String(200), nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "feeds",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("events", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("production", sa.Boolean, nullable=False),
        sa.Column("promoted_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "chunks",
        sa.Column("position", BIG, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("first_row", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("cause", sa.String(200), nullable=False),
        sa.Column("trace", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("filled_at", sa.DateTime, nullable=False),
        sa.Column("checked", sa.BigInteger, nullable=False),
        sa.Column("labelled_rows", sa.BigInteger, nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
        sa.Column("drift", sa.Boolean),
        sa.Column("estimated_performance", sa.Boolean),
        sa.Column("realised_performance", sa.Boolean),
        sa.Column("first_event", sa.DateTime),
        sa.Column("last_event", sa.DateTime),
        sa.Column("evaluated_at", sa.DateTime),
        sa.Column("report", sa.Text),
        sa.UniqueConstraint("pipeline", "version", "number"),
    )
    op.create_index("chunks_by_state", "chunks", ["state", "pipeline", "position"])
    op.create_table(
        "decisions",
        sa.Column("position", BIG, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("chunk_id", sa.String(100), nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("chunk_id", sa.String(100), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    for table in (
        "requests",
        "decisions",
        "chunks",
        "versions",
        "feeds",
        "actuals",
        "spans",
        "batches",
        "streams",
        "outbox",
        "inbox",
    ):
        op.drop_table(table)
