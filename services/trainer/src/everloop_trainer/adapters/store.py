"""The tables of trainings and of requests for them, and every statement that touches them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite

from everloop_trainer.domain import Cause, Dataset, Progress, State, Training

__all__ = [
    "add",
    "ask",
    "asked",
    "by_cause",
    "by_id",
    "cancel",
    "counts",
    "history",
    "page",
    "set_progress",
    "set_run",
    "set_state",
    "start",
    "take_back",
    "waiting",
]

_DATASET = TypeAdapter(Dataset)
_TRACE = TypeAdapter(dict[str, str])
_trainings = sa.Table(
    "trainings",
    sa.MetaData(),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36)),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("dataset", sa.Text),
    sa.Column("state", sa.String(16)),
    sa.Column("cause", sa.String(16)),
    sa.Column("cause_id", sa.String(200)),
    sa.Column("trace", sa.Text),
    sa.Column("attempts", sa.Integer),
    sa.Column("trials_done", sa.Integer),
    sa.Column("trials_total", sa.Integer),
    sa.Column("best_metric", sa.Float),
    sa.Column("best_family", sa.String(100)),
    sa.Column("run_id", sa.String(64)),
    sa.Column("create_time", sa.DateTime),
    sa.Column("start_time", sa.DateTime),
    sa.Column("end_time", sa.DateTime),
    sa.Column("cancel_time", sa.DateTime),
    sa.Column("error", sa.Text),
)
_c = _trainings.c
_requests = sa.Table(
    "requests",
    sa.MetaData(),
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("cause_id", sa.String(200), primary_key=True),
    sa.Column("cause", sa.String(16)),
    sa.Column("create_time", sa.DateTime),
)


def ask(
    connection: sa.Connection, pipeline: str, cause_id: str, cause: Cause, keep: timedelta
) -> None:
    """Notes a request for a training; forgets those older than `keep`."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"pipeline": pipeline, "cause_id": cause_id, "cause": cause.value}
    connection.execute(_requests.delete().where(_requests.c.create_time < _now() - keep))
    connection.execute(
        dialect.insert(_requests).values(create_time=_now(), **values).on_conflict_do_nothing()
    )


def asked(connection: sa.Connection, pipeline: str, cause_id: str) -> Cause | None:
    """Why a training was asked for under this id; None if it was not."""
    found = connection.scalar(
        sa.select(_requests.c.cause).where(
            _requests.c.pipeline == pipeline, _requests.c.cause_id == cause_id
        )
    )
    return Cause(found) if found else None


def add(
    connection: sa.Connection,
    training_id: str,
    dataset: Dataset,
    cause: Cause,
    cause_id: str,
    trace: Mapping[str, str],
) -> Training:
    """Queues a training."""
    connection.execute(
        _trainings.insert().values(
            id=training_id,
            pipeline=dataset.pipeline,
            dataset=_DATASET.dump_json(dataset).decode(),
            state=State.QUEUED.value,
            cause=cause.value,
            cause_id=cause_id,
            trace=_TRACE.dump_json(dict(trace)).decode(),
            attempts=0,
            trials_done=0,
            trials_total=0,
            best_family="",
            run_id="",
            create_time=_now(),
            error="",
        )
    )
    training = by_id(connection, training_id)
    assert training is not None  # just written, in this transaction
    return training


def by_id(connection: sa.Connection, training_id: str) -> Training | None:
    """One training."""
    return _one(connection, _c.id == training_id)


def by_cause(connection: sa.Connection, pipeline: str, cause_id: str) -> Training | None:
    """The training that an event or request led to."""
    return _one(connection, sa.and_(_c.pipeline == pipeline, _c.cause_id == cause_id))


def history(connection: sa.Connection, pipeline: str) -> list[Training]:
    """All trainings of a pipeline, oldest first."""
    return _all(
        connection, sa.select(_trainings).where(_c.pipeline == pipeline).order_by(_c.position)
    )


def waiting(connection: sa.Connection) -> list[Training]:
    """Trainings that have not ended, oldest first."""
    states = (State.QUEUED.value, State.RUNNING.value)
    return _all(connection, sa.select(_trainings).where(_c.state.in_(states)).order_by(_c.position))


def page(connection: sa.Connection, pipeline: str, before: int | None, size: int) -> list[Training]:
    """Trainings of a pipeline, or of all where it is empty, newest first, below a position."""
    query = sa.select(_trainings).order_by(_c.position.desc()).limit(size)
    if pipeline:
        query = query.where(_c.pipeline == pipeline)
    if before is not None:
        query = query.where(_c.position < before)
    return _all(connection, query)


def counts(connection: sa.Connection) -> dict[tuple[str, State], int]:
    """Trainings by pipeline and state."""
    query = sa.select(_c.pipeline, _c.state, sa.func.count()).group_by(_c.pipeline, _c.state)
    return {(name, State(state)): count for name, state, count in connection.execute(query)}


def cancel(connection: sa.Connection, training_id: str, why: str) -> None:
    """Ends a training that waits; notes for one that runs that it is to end. Nothing happens to any other."""
    asked = _trainings.update().where(_c.id == training_id, _c.cancel_time.is_(None))
    # Both at once where it waits: whoever would start it meanwhile finds one or the other.
    queued = {"state": State.CANCELLED.value, "end_time": _now()}
    for state, further in ((State.QUEUED, queued), (State.RUNNING, {})):
        connection.execute(
            asked.where(_c.state == state.value).values(cancel_time=_now(), error=why, **further)
        )


def start(connection: sa.Connection, training_id: str) -> bool:
    """Counts an attempt; the first sets the time of the start. False if it is not to be started any more."""
    statement = (
        _trainings.update()
        .where(
            _c.id == training_id,
            _c.state.in_((State.QUEUED.value, State.RUNNING.value)),
            _c.cancel_time.is_(None),
        )
        .values(
            state=State.RUNNING.value,
            attempts=_c.attempts + 1,
            start_time=sa.func.coalesce(_c.start_time, sa.literal(_now(), sa.DateTime)),
        )
    )
    return bool(connection.execute(statement).rowcount)


def take_back(connection: sa.Connection, training_id: str) -> None:
    """Takes an attempt back that came to nothing through no fault of the training."""
    connection.execute(
        _trainings.update().where(_c.id == training_id).values(attempts=_c.attempts - 1)
    )


def set_run(connection: sa.Connection, training_id: str, run_id: str, trials_total: int) -> None:
    """Notes the MLflow run and the budget."""
    _update(connection, training_id, run_id=run_id, trials_total=trials_total)


def set_progress(connection: sa.Connection, training_id: str, progress: Progress) -> None:
    """Notes how far the search is."""
    _update(connection, training_id, **dataclasses.asdict(progress))


def set_state(
    connection: sa.Connection,
    training_ids: Iterable[str],
    before: State,
    after: State,
    error: str = "",
) -> int:
    """Ends trainings that are in the state `before`; returns how many were.

    A training whose cancellation was asked for ends as cancelled and in no other way, and keeps who asked.
    """
    statement = _trainings.update().where(_c.id.in_(list(training_ids)), _c.state == before.value)
    if after is State.CANCELLED:
        statement = statement.where(_c.cancel_time.is_not(None))
    else:
        statement = statement.where(_c.cancel_time.is_(None)).values(error=error)
    statement = statement.values(state=after.value, end_time=_now())
    return int(connection.execute(statement).rowcount)


def _update(connection: sa.Connection, training_id: str, **values: Any) -> None:
    connection.execute(_trainings.update().where(_c.id == training_id).values(**values))


def _now() -> datetime:
    # Without a zone: SQLite keeps none, and both databases hold UTC.
    return datetime.now(UTC).replace(tzinfo=None)


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Training | None:
    found = _all(connection, sa.select(_trainings).where(condition))
    return found[0] if found else None


def _all(connection: sa.Connection, query: sa.Select[Any]) -> list[Training]:
    return [_training(dict(row)) for row in connection.execute(query).mappings()]


def _training(row: Mapping[str, Any]) -> Training:
    values = {key: value for key, value in row.items() if key != "pipeline"}
    for key in ("create_time", "start_time", "end_time", "cancel_time"):
        values[key] = row[key] and row[key].replace(tzinfo=UTC)
    values["dataset"] = _DATASET.validate_json(row["dataset"])
    values["trace"] = _TRACE.validate_json(row["trace"])
    values["state"] = State(row["state"])
    values["cause"] = Cause(row["cause"])
    return Training(**values)
