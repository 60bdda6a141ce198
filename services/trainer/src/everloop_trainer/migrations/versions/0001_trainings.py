"""The trainer's first tables."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.database import runtime_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.create_all(op.get_bind())
    op.create_table(
        "trainings",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("cause_id", sa.String(200), nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("trials_done", sa.Integer, nullable=False),
        sa.Column("trials_total", sa.Integer, nullable=False),
        sa.Column("best_metric", sa.Float),
        sa.Column("best_family", sa.String(100), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("create_time", sa.DateTime, nullable=False),
        sa.Column("start_time", sa.DateTime),
        sa.Column("end_time", sa.DateTime),
        sa.Column("error", sa.Text, nullable=False),
        sa.UniqueConstraint("pipeline", "cause_id"),
    )
    op.create_index("trainings_by_state", "trainings", ["state", "position"])


def downgrade() -> None:
    for table in ("trainings", "outbox", "inbox"):
        op.drop_table(table)
