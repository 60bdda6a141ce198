"""When a label came, to the second, and indexes by which the oldest of everything is found."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

DAY = 24 * 60 * 60


def upgrade() -> None:
    arrived = sa.Column("arrived", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("actuals", arrived)
    op.execute(f"UPDATE actuals SET arrived = CAST(day AS BIGINT) * {DAY}")
    op.drop_column("actuals", "day")
    op.create_index("actuals_by_age", "actuals", ["pipeline", "arrived"])
    op.create_index("decisions_by_age", "decisions", ["pipeline", "position"])
    op.create_index("requests_by_age", "requests", ["pipeline", "made_at"])


def downgrade() -> None:
    op.drop_index("requests_by_age")
    op.drop_index("decisions_by_age")
    op.drop_index("actuals_by_age")
    op.add_column("actuals", sa.Column("day", sa.Integer, nullable=False, server_default="0"))
    op.execute(f"UPDATE actuals SET day = arrived / {DAY}")
    op.drop_column("actuals", "arrived")
