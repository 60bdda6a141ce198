"""Requests and their first answers."""

from __future__ import annotations

from dataclasses import astuple
from datetime import datetime

import orjson
import sqlalchemy as sa

from everloop_ingest.adapters.store.letters import REPLAY_REQUESTS
from everloop_ingest.adapters.store.sql import METADATA, Utc
from everloop_ingest.adapters.store.versions import CUT_REQUESTS
from everloop_ingest.domain import Pushed, Reason, Rejection
from everloop_runtime.database import Database

__all__ = ["Requests"]

PUSH_REQUESTS = sa.Table(
    "push_requests",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("rejections", sa.LargeBinary),
    sa.Column("create_time", Utc),
)


class Requests:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def pushed(self, pipeline: str, request_id: str) -> Pushed | None:
        """What a push request was answered."""
        with self._database.read() as connection:
            return _pushed(connection, pipeline, request_id)

    def answer(self, pipeline: str, request_id: str, answer: Pushed, now: datetime) -> Pushed:
        """Remembers the answer of a push request; returns the first one that was."""
        row = {
            "pipeline": pipeline,
            "request_id": request_id,
            "digest": answer.digest,
            "rejections": orjson.dumps([astuple(item) for item in answer.rejections]),
            "create_time": now,
        }
        with self._database.unit_of_work() as work:
            work.insert_once(PUSH_REQUESTS, row)
            return _pushed(work.connection, pipeline, request_id) or answer

    def forget(self, before: datetime, limit: int) -> int:
        """Deletes requests from before a moment, the oldest `limit` of each kind; returns how many it were."""
        gone = 0
        for table in (CUT_REQUESTS, PUSH_REQUESTS, REPLAY_REQUESTS):
            key = table.c.pipeline, table.c.request_id
            old = sa.select(*key).where(table.c.create_time < before)
            oldest = old.order_by(table.c.create_time).limit(limit)
            with self._database.unit_of_work() as work:
                delete = table.delete().where(sa.tuple_(*key).in_(oldest))
                gone += work.connection.execute(delete).rowcount
        return gone


def _pushed(connection: sa.Connection, pipeline: str, request_id: str) -> Pushed | None:
    chosen = (PUSH_REQUESTS.c.pipeline == pipeline) & (PUSH_REQUESTS.c.request_id == request_id)
    row = connection.execute(sa.select(PUSH_REQUESTS).where(chosen)).first()
    if row is None:
        return None
    found = orjson.loads(row.rejections)
    return Pushed(row.digest, [Rejection(item[0], Reason(item[1]), *item[2:]) for item in found])
