"""First tables: models, versions, what served, transitions, answers, audit; inbox and outbox."""

import sqlalchemy as sa
from alembic import op

from everloop_runtime.database import runtime_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.String(63)
TIME = sa.String(32)
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("model", NAME, sa.ForeignKey("models.name"), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("mirrored_stage", sa.String(16), nullable=False),
        sa.Column("training_id", sa.String(200), nullable=False, unique=True),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("model_uri", sa.Text, nullable=False),
        sa.Column("onnx_sha256", sa.String(64), nullable=False),
        sa.Column("family", sa.String(100), nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("dataset_version", sa.BigInteger, nullable=False),
        sa.Column("dataset_tag", sa.String(200), nullable=False),
        sa.Column("cause", sa.String(40), nullable=False),
        sa.Column("gates", sa.Text, nullable=False),
        sa.Column("trained_event_id", sa.String(200), nullable=False),
        sa.Column("training_cause_id", sa.String(200), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.Column("promote_time", TIME),
        sa.UniqueConstraint("model", "version", name="uq_model_versions_model_version"),
    )
    op.create_table(
        "serving",
        sa.Column("model", NAME, primary_key=True),
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "transitions",
        sa.Column("model", NAME, primary_key=True),
        sa.Column("move", sa.String(16), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("requested_version", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("cause_id", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(200), nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(200), primary_key=True),
        sa.Column("move", sa.String(16), nullable=False),
        sa.Column("model", NAME, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("time", TIME, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("model", NAME, nullable=False, index=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("cause_id", sa.String(200), nullable=False),
        sa.Column("time", TIME, nullable=False),
    )
    _forbid_changes("audit")
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    tables = (
        "outbox",
        "inbox",
        "audit",
        "requests",
        "transitions",
        "serving",
        "model_versions",
        "models",
    )
    for table in tables:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_is_append_only")


def _forbid_changes(table: str) -> None:
    """The trail is append-only by the database's own rule, not by our good manners."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
