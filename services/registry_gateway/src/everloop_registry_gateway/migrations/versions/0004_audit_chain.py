"""The hash chain of the audit trail, with a link for every entry that is there, and the evidence of new ones."""

import sqlalchemy as sa
from alembic import op

from everloop_registry_gateway.chain import GENESIS, link

revision = "0004"
down_revision = "0003"

FUNCTION = "audit_chain_is_append_only"


def upgrade() -> None:
    # Only what is new: a gateway of the version before goes on writing meanwhile.
    op.add_column("audit", sa.Column("evidence", sa.Text))
    chain = op.create_table(
        "audit_chain",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("previous", sa.String(64), nullable=False, unique=True),
        sa.Column("link", sa.String(64), nullable=False),
    )
    connection, last = op.get_bind(), GENESIS
    for row in connection.execute(sa.text("SELECT * FROM audit ORDER BY id")).mappings().all():
        made = link(last, row)
        op.execute(chain.insert().values(id=row["id"], previous=last, link=made))
        last = made
    _forbid_changes()


def downgrade() -> None:
    op.drop_table("audit_chain")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP FUNCTION {FUNCTION}")
    op.drop_column("audit", "evidence")


def _forbid_changes() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION {FUNCTION}() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'audit_chain is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_chain_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_chain "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {FUNCTION}()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_chain_no_{change.lower()} BEFORE {change} ON audit_chain "
            "BEGIN SELECT RAISE(ABORT, 'audit_chain is append-only'); END"
        )
