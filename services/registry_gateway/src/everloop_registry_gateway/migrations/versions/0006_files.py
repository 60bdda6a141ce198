"""SHA-256 of every file of a version; versions that are there have that of their ONNX file."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # A gateway of the version before goes on registering without it.
    op.add_column("model_versions", sa.Column("files", sa.Text))


def downgrade() -> None:
    op.drop_column("model_versions", "files")
