"""State, inbox and outbox commit together or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from everloop_contracts.stubs.everloop.training.v1.events_pb2 import TrainingFailed
from everloop_runtime.database import LARGEST_MESSAGE, Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event


def event(number: int = 1):
    return new_event("test", "late", TrainingFailed(pipeline="late"), id=f"e{number}")


def handle(database, counts, event_id: str, *, fail: bool = False) -> None:
    """What every handler of a service does."""
    with database.unit_of_work() as work:
        if not work.first_time(event_id):
            return
        work.connection.execute(counts.insert().values(name=event_id, n=1))
        work.publish(new_event("test", "late", TrainingFailed(pipeline="late"), cause=event_id))
        if fail:
            raise RuntimeError("in the middle")


def rows(database, counts) -> int:
    with database.read() as connection:
        number: int = connection.scalar(sa.select(sa.func.count()).select_from(counts))
        return number


def test_an_event_is_handled_once(database, counts):
    for _ in range(3):
        handle(database, counts, "e1")
    handle(database, counts, "e2")
    assert rows(database, counts) == 2
    assert len(database.pending(10)) == 2


def test_a_failure_takes_everything_back(database, counts):
    with pytest.raises(RuntimeError):
        handle(database, counts, "e1", fail=True)
    assert rows(database, counts) == 0
    assert list(database.pending(10)) == []
    handle(database, counts, "e1")
    assert rows(database, counts) == 1


def test_what_is_committed_outlives_the_process(tmp_path, database, counts):
    handle(database, counts, "e1")
    database.close()
    again = Database(f"sqlite:///{tmp_path / 'data' / 'service.db'}")
    assert rows(again, counts) == 1
    assert len(again.pending(10)) == 1
    again.close()


def test_the_outbox_keeps_the_order_and_forgets_what_was_sent(database):
    with database.unit_of_work() as work:
        for number in range(5):
            work.send("topic", b"key", b"%d" % number, [("a", b"\xff\x00")])
    pending = database.pending(3)
    assert [row.value for row in pending] == [b"0", b"1", b"2"]
    database.sent([row.position for row in pending])
    assert [row.value for row in database.pending(9)] == [b"3", b"4"]


def test_a_message_that_no_broker_would_take_is_refused_when_it_is_sent(database):
    headers = [("name", b"x" * 96)]
    with database.unit_of_work() as work:
        work.send("topic", b"key", b"x" * (LARGEST_MESSAGE - 103), headers)
    with pytest.raises(EverloopError) as caught, database.unit_of_work() as work:
        work.send("topic", b"key", b"x" * (LARGEST_MESSAGE - 102), headers)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "MESSAGE_TOO_LARGE")
    assert len(database.pending(9)) == 1


def test_positions_are_never_used_again(database):
    with database.unit_of_work() as work:
        work.send("topic", None, b"1", [])
    (first,) = database.pending(9)
    database.sent([first.position])
    with database.unit_of_work() as work:
        work.send("topic", None, b"2", [])
    (second,) = database.pending(9)
    assert second.position > first.position


def test_listeners_hear_of_commits_that_publish_and_of_no_others(database):
    heard = []
    database.on_publish(lambda: heard.append(len(database.pending(9))))
    with database.unit_of_work() as work:
        work.first_time("quiet")
    with pytest.raises(RuntimeError), database.unit_of_work() as work:
        work.publish(event())
        raise RuntimeError
    assert heard == []
    with database.unit_of_work() as work:
        work.publish(event())
    assert heard == [1], "told after the commit: the relay must find the message"


def test_concurrent_handlers_of_one_event_do_its_work_once(database, counts):
    gate = threading.Barrier(8)

    def one(_: int) -> None:
        gate.wait()
        handle(database, counts, "e1")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert rows(database, counts) == 1


def test_concurrent_writers_wait_for_each_other(database, counts):
    with database.unit_of_work() as work:
        work.connection.execute(counts.insert().values(name="sum", n=0))

    def add(_: int) -> None:
        with database.unit_of_work() as work:
            n = work.connection.scalar(sa.select(counts.c.n))
            work.connection.execute(counts.update().values(n=n + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(80)))
    with database.read() as connection:
        assert connection.scalar(sa.select(counts.c.n)) == 80


def test_reading_neither_waits_for_a_writer_nor_sees_its_half(database, counts):
    with database.unit_of_work() as work:
        work.connection.execute(counts.insert().values(name="half", n=1))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(rows, database, counts).result(timeout=5) == 0
    assert rows(database, counts) == 1


def test_upgrading_twice_changes_nothing(database, migrations, counts):
    handle(database, counts, "e1")
    database.upgrade(migrations)
    assert rows(database, counts) == 1


def test_commits_survive_the_machine(database):
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_a_database_that_is_away_is_unavailable(tmp_path, database, counts):
    """So that a consumer waits for it; as an unknown error it would cost the event its place."""
    path = tmp_path / "data" / "service.db"
    impatient = Database(f"sqlite:///{path}")
    with impatient.read() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
    with database.unit_of_work(), pytest.raises(EverloopError) as caught, impatient.unit_of_work():
        pass
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    impatient.close()
    missing = Database(f"sqlite:///{tmp_path}")
    with pytest.raises(EverloopError), missing.read():
        pass


def test_a_mistake_in_a_statement_is_no_outage(database, counts):
    with pytest.raises(sa.exc.OperationalError), database.read() as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")
    with pytest.raises(sa.exc.IntegrityError), database.unit_of_work() as work:
        for _ in range(2):
            work.connection.execute(counts.insert().values(name="twice", n=1))
