"""Rollouts, and what each replica has seen of those that run."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = sa.String(63)
TIME = sa.String(32)
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("position", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("model", NAME, nullable=False, index=True),
        sa.Column("candidate_version", sa.BigInteger, nullable=False),
        sa.Column("baseline_version", sa.BigInteger, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("baseline", sa.Text, nullable=False),
        sa.Column("start_time", TIME, nullable=False),
        sa.Column("end_time", TIME),
    )
    # At most one runs per model, whoever else writes here.
    running = sa.text("state = 'running'")
    op.create_index(
        "uq_rollouts_running",
        "rollouts",
        ["model"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
    op.create_table(
        "rollout_reports",
        sa.Column("rollout_id", sa.String(36), primary_key=True),
        sa.Column("replica", sa.String(200), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("candidate", sa.Text, nullable=False),
        sa.Column("baseline", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("rollout_reports")
    op.drop_table("rollouts")
