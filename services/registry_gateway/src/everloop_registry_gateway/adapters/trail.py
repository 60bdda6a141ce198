"""The audit trail: what was done to versions, by whom and why, and the chain that shows if somebody changed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from everloop_registry_gateway.adapters.outgoing import Outgoing
from everloop_registry_gateway.adapters.sql import (
    METADATA,
    NAME,
    SERIAL,
    TIME,
    below,
    moment,
    moment_text,
    of,
)
from everloop_registry_gateway.chain import FIELDS, GENESIS, link
from everloop_registry_gateway.domain import AuditEntry, GateResult, Verification

__all__ = ["Trail"]

audit = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("model", NAME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("cause_id", sa.String(200), nullable=False),
    sa.Column("time", TIME, nullable=False),
    sa.Column("evidence", sa.Text),
)
chain = sa.Table(
    "audit_chain",
    METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.String(64), nullable=False, unique=True),
    sa.Column("link", sa.String(64), nullable=False),
)
ROWS_AT_A_TIME = 1_000


class Trail:
    """Reads and writes of one transaction, or of one reading connection."""

    def __init__(self, connection: sa.Connection) -> None:
        """Works on an open connection."""
        self._connection = connection

    def note(
        self,
        model: str,
        version: int,
        action: str,
        *,
        actor: str,
        reason: str,
        cause_id: str,
        evidence: Sequence[GateResult] = (),
    ) -> None:
        """Adds an entry, its link and its webhook; entries never change. Others wait with theirs until this commits."""
        if self._connection.dialect.name == "postgresql":
            # SQLite has one writer. Of two that read the same last link, one would break the chain.
            self._connection.execute(sa.text("LOCK TABLE audit_chain IN EXCLUSIVE MODE"))
        now = datetime.now(UTC)
        entry = {
            "model": model,
            "version": version,
            "action": action,
            "actor": actor,
            "reason": reason,
            "cause_id": cause_id,
            "time": moment_text(now),
            "evidence": json.dumps([asdict(gate) for gate in evidence]) if evidence else None,
        }
        (number,) = self._connection.execute(
            audit.insert().values(**entry).returning(audit.c.id)
        ).one()
        last = self._connection.scalar(sa.select(chain.c.link).order_by(chain.c.id.desc()).limit(1))
        previous = last or GENESIS
        made = link(previous, entry | {"id": number})
        self._connection.execute(chain.insert().values(id=number, previous=previous, link=made))
        Outgoing(self._connection).add(number, now)

    def entry(self, number: int) -> AuditEntry | None:
        """One entry."""
        return next(iter(self._entries(_ENTRIES.where(audit.c.id == number))), None)

    def of_version(self, model: str, version: int) -> list[AuditEntry]:
        """What was done to a version, oldest first."""
        return self._entries(
            _ENTRIES.where(audit.c.model == model, audit.c.version == version).order_by(audit.c.id)
        )

    def page(self, model: str, before: int | None, size: int) -> tuple[list[AuditEntry], str]:
        """Entries, newest first, and the token of the next page (empty at the end)."""
        entries = self._entries(
            _ENTRIES.where(of(audit, model), below(audit.c.id, before))
            .order_by(audit.c.id.desc())
            .limit(size + 1)
        )
        return entries[:size], str(entries[size - 1].id) if len(entries) > size else ""

    def verify(self, head: str = "") -> Verification:
        """Follows the chain from its start and names the first entry that does not fit.

        Args:
            head: a link that was the last one at some time, and so must be in the chain; empty for no such check.
        """
        entries, last, met = 0, GENESIS, not head
        broken, problem = 0, ""
        with self._links() as links:
            for row in links.mappings():
                problem = _problem(last, row)
                if problem:
                    broken = row["linked"]
                    break
                entries, last = entries + 1, row["link"]
                met = met or last == head
        outside = self._outside()
        if outside is not None and (not problem or outside < broken):
            broken, problem = outside, "it has no link: it was not written by a gateway that chains"
        elif not (problem or met):
            problem = "the chain does not hold the link that was noted: it was cut off or made anew"
        return Verification(entries, last, broken, problem)

    def _links(self) -> sa.CursorResult[Any]:
        """The chain in its order, each link with its entry."""
        query = (
            sa.select(chain.c.id.label("linked"), chain.c.previous, chain.c.link, *audit.c)
            .outerjoin(audit, audit.c.id == chain.c.id)
            .order_by(chain.c.id)
        )
        options = {"yield_per": ROWS_AT_A_TIME}
        return self._connection.execute(query, execution_options=options)

    def _outside(self) -> int | None:
        """The first entry without a link; None if every one has one."""
        query = (
            sa.select(sa.func.min(audit.c.id))
            .outerjoin(chain, audit.c.id == chain.c.id)
            .where(chain.c.id.is_(None))
        )
        found: int | None = self._connection.scalar(query)
        return found

    def _entries(self, query: sa.Select[Any]) -> list[AuditEntry]:
        return [_entry(row) for row in self._connection.execute(query).mappings()]


_ENTRIES = sa.select(*audit.c, chain.c.link).outerjoin(chain, audit.c.id == chain.c.id)


def _problem(last: str, row: sa.RowMapping) -> str:
    """What is wrong with a link that should come after `last`; empty if nothing is."""
    if row["id"] is None:
        return "it is gone: its link is there, the entry is not"
    if row["previous"] != last:
        return "it does not follow the entry before it: one was removed, added or moved"
    if link(last, dict(row)) != row["link"]:
        return "it does not say what was written"
    return ""


def _entry(row: sa.RowMapping) -> AuditEntry:
    evidence = json.loads(row["evidence"]) if row["evidence"] else ()
    return AuditEntry(
        **{name: row[name] for name in FIELDS}
        | {
            "time": moment(row["time"]),
            "evidence": tuple(GateResult(**gate) for gate in evidence),
            "link": row["link"] or "",
        }
    )
