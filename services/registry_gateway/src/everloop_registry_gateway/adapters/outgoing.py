"""The outbox of webhooks: which entries of the audit trail receivers are still to be told of."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from everloop_registry_gateway.adapters.sql import METADATA, TIME, moment_text
from everloop_registry_gateway.domain import Delivery

__all__ = ["Outgoing"]

webhooks = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("entry", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_time", TIME, nullable=False),
)


class Outgoing:
    """Reads and writes of one transaction, or of one reading connection."""

    def __init__(self, connection: sa.Connection) -> None:
        """Works on an open connection."""
        self._connection = connection

    def add(self, entry: int, now: datetime) -> None:
        """Puts an entry into the outbox."""
        self._connection.execute(
            webhooks.insert().values(entry=entry, attempts=0, next_time=moment_text(now))
        )

    def due(self, now: datetime, limit: int) -> list[Delivery]:
        """What is to be sent by now, the longest waiting first."""
        query = (
            sa.select(webhooks.c.entry, webhooks.c.attempts)
            .where(webhooks.c.next_time <= moment_text(now))
            .order_by(webhooks.c.next_time, webhooks.c.entry)
            .limit(limit)
        )
        return [Delivery(entry, attempts) for entry, attempts in self._connection.execute(query)]

    def attempt(self, delivery: Delivery, again: datetime) -> bool:
        """Counts an attempt, the next one being due at a time; False if somebody else makes this one."""
        taken = self._connection.execute(
            webhooks.update()
            .where(webhooks.c.entry == delivery.entry, webhooks.c.attempts == delivery.attempts)
            .values(attempts=delivery.attempts + 1, next_time=moment_text(again))
        )
        return taken.rowcount == 1

    def done(self, entry: int) -> None:
        """Takes an entry out of the outbox."""
        self._connection.execute(webhooks.delete().where(webhooks.c.entry == entry))
