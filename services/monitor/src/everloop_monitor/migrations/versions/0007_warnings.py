"""Early warnings of chunks that are not yet full."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "warnings",
        sa.Column("position", BIG, primary_key=True, autoincrement=True),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("feature", sa.String(200), nullable=False),
        sa.Column("seen_after", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
        sa.UniqueConstraint("pipeline", "version", "number", "feature"),
    )
    op.create_index("warnings_by_age", "warnings", ["pipeline", "position"])


def downgrade() -> None:
    op.drop_table("warnings")
