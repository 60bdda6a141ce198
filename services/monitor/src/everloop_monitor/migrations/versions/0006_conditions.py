"""Verdicts of the detectors besides drift per feature and performance."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

CONDITIONS = (
    "multivariate_drift",
    "output_drift",
    "segment_drift",
    "data_quality",
    "schema_skew",
    "segment_performance",
)


def upgrade() -> None:
    for condition in CONDITIONS:
        op.add_column("chunks", sa.Column(condition, sa.Boolean))


def downgrade() -> None:
    for condition in reversed(CONDITIONS):
        op.drop_column("chunks", condition)
