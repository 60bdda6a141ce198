"""Versions in parts: the parts, which shards are in them, and the labels that wait for their record."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds table and columns; every shard is still to be put into parts, which the next version does."""
    op.create_table(
        "parts",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("pipeline", sa.String(63), nullable=False),
        sa.Column("md5", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("labelled_rows", sa.BigInteger, nullable=False),
        sa.Column("first_event_time", sa.DateTime, nullable=False),
        sa.Column("first_record_id", sa.Text, nullable=False),
        sa.Column("last_event_time", sa.DateTime, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("columns", sa.String(32), nullable=False),
        sa.Column("first_version", sa.BigInteger, nullable=False),
        sa.Column("until_version", sa.BigInteger),
    )
    op.create_index("parts_of_version", "parts", ["pipeline", "until_version"])
    merged = sa.Column("merged", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("shards", merged)
    op.add_column("versions", sa.Column("labels", sa.Text, nullable=False, server_default=""))
    with op.batch_alter_table("versions") as table:  # a directory's MD5 has `.dir` behind it
        table.alter_column("md5", existing_type=sa.String(32), type_=sa.String(40))


def downgrade() -> None:
    """Drops them."""
    with op.batch_alter_table("versions") as table:
        table.alter_column("md5", existing_type=sa.String(40), type_=sa.String(32))
    op.drop_column("versions", "labels")
    op.drop_column("shards", "merged")
    op.drop_index("parts_of_version", "parts")
    op.drop_table("parts")
