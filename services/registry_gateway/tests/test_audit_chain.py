"""The audit trail's hash chain: what is done to the database past the gateway is found and named."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.chain import FIELDS, GENESIS, link
from everloop_runtime.database import Database

ENTRIES = 9
CHANGED, GONE, MOVED, OUTSIDE, CUT = (
    "does not say what was written",
    "it is gone",
    "does not follow the entry before it",
    "has no link",
    "does not hold the link that was noted",
)
FORGED = (
    "INSERT INTO audit (id, model, version, action, actor, reason, cause_id, time) "
    "VALUES ({}, 'late', 1, 'promoted', 'eve', '', '', '2026-01-01T00:00:00.000000+00:00')"
)


@pytest.fixture
def trail(world):
    """A world with a trail of `ENTRIES` entries, and a way around what guards it."""
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.1})
    world.register(3)
    assert [entry.id for entry in world.entries()] == list(range(1, ENTRIES + 1))
    with world.database.unit_of_work() as work:
        for table in ("audit", "audit_chain"):
            if work.connection.dialect.name == "postgresql":
                work.connection.execute(sa.text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
                continue
            for change in ("update", "delete"):
                work.connection.execute(sa.text(f"DROP TRIGGER {table}_no_{change}"))
    return world


def tamper(world, *statements: str) -> None:
    with world.database.unit_of_work() as work:
        for statement in statements:
            work.connection.execute(sa.text(statement))


def remake(world, first: int, last: int = ENTRIES) -> None:
    """Makes links anew, as somebody would who knows how they are made."""
    with world.database.unit_of_work() as work:
        query = "SELECT * FROM audit WHERE id BETWEEN :first AND :last ORDER BY id"
        rows = work.connection.execute(sa.text(query), {"first": first, "last": last})
        before = sa.text("SELECT link FROM audit_chain WHERE id < :id ORDER BY id DESC LIMIT 1")
        for row in rows.mappings().all():
            previous = work.connection.scalar(before, {"id": row["id"]}) or GENESIS
            work.connection.execute(
                sa.text("UPDATE audit_chain SET previous = :previous, link = :link WHERE id = :id"),
                {"previous": previous, "link": link(previous, row), "id": row["id"]},
            )


def test_an_untouched_trail_fits(trail):
    found = trail.verify()
    assert (found.entries, found.broken, found.problem) == (ENTRIES, 0, "")
    assert found.head == trail.entries()[-1].link
    for entry in trail.entries():
        assert trail.verify(entry.link).problem == ""


def test_an_empty_trail_fits(world):
    assert world.verify() == type(world.verify())(0, GENESIS)


@pytest.mark.parametrize("number", [1, ENTRIES])
def test_a_changed_field_is_named(trail, number):
    for field in FIELDS:
        if field == "id":
            continue  # an entry that was moved, below
        keep = f"CREATE TABLE kept AS SELECT {field} AS was FROM audit WHERE id = {number}"
        tamper(trail, keep, f"UPDATE audit SET {field} = '7' WHERE id = {number}")
        found = trail.verify()
        assert (found.broken, found.entries) == (number, number - 1), field
        assert CHANGED in found.problem
        back = f"UPDATE audit SET {field} = (SELECT was FROM kept) WHERE id = {number}"
        tamper(trail, back, "DROP TABLE kept")
    assert trail.verify().problem == ""


@pytest.mark.parametrize(
    ("statements", "broken", "problem"),
    [
        (["DELETE FROM audit WHERE id = 4"], 4, GONE),
        ([f"DELETE FROM audit WHERE id = {ENTRIES}"], ENTRIES, GONE),
        (["DELETE FROM audit WHERE id = 4", "DELETE FROM audit_chain WHERE id = 4"], 5, MOVED),
        (["DELETE FROM audit WHERE id = 1", "DELETE FROM audit_chain WHERE id = 1"], 2, MOVED),
        (["DELETE FROM audit_chain WHERE id = 4"], 4, OUTSIDE),
        ([FORGED.format(99)], 99, OUTSIDE),
        ([FORGED.format(0)], 0, OUTSIDE),
        (
            [FORGED.format(99), f"INSERT INTO audit_chain VALUES (99, 'x', '{'0' * 64}')"],
            99,
            MOVED,
        ),
        (
            [
                f"UPDATE audit SET id = {now} WHERE id = {was}"
                for was, now in ((4, 0), (5, 4), (0, 5))
            ],
            4,
            CHANGED,
        ),
        (
            [
                f"UPDATE {table} SET id = {now} WHERE id = {was}"
                for table in ("audit", "audit_chain")
                for was, now in ((4, 0), (5, 4), (0, 5))
            ],
            4,
            MOVED,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_was_removed_added_or_moved_is_named(trail, statements, broken, problem):
    tamper(trail, *statements)
    found = trail.verify()
    assert found.broken == broken
    assert problem in found.problem


def test_a_link_made_anew_gives_the_next_entry_away(trail):
    tamper(trail, "UPDATE audit SET actor = 'eve' WHERE id = 4")
    remake(trail, 4, 4)
    found = trail.verify()
    assert (found.broken, MOVED in found.problem) == (5, True)


def test_a_chain_that_was_cut_off_or_made_anew_lacks_the_noted_link(trail):
    noted = trail.verify().head
    tamper(
        trail,
        f"DELETE FROM audit WHERE id = {ENTRIES}",
        f"DELETE FROM audit_chain WHERE id = {ENTRIES}",
    )
    assert trail.verify().problem == ""
    assert CUT in trail.verify(noted).problem

    noted = trail.verify().head
    tamper(trail, "UPDATE audit SET actor = 'eve' WHERE id = 4")
    remake(trail, 4)
    assert trail.verify().problem == ""
    assert CUT in trail.verify(noted).problem


def test_the_chain_goes_on_after_a_break_and_the_break_stays_named(trail):
    tamper(trail, "UPDATE audit SET actor = 'eve' WHERE id = 4")
    trail.register(4)
    assert trail.verify().broken == 4


def test_links_cannot_be_changed_in_passing(world):
    world.register(1)
    for statement in ("UPDATE audit_chain SET link = ''", "DELETE FROM audit_chain"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"):
            tamper(world, statement)


def test_entries_carry_the_verdicts_they_rest_on(world):
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.1})
    by_action = {(entry.version, entry.action): entry.evidence for entry in world.entries()}
    assert by_action[1, "registered"] == ()
    for place in ((1, "staged"), (1, "promoted"), (2, "rejected")):
        assert [gate.gate for gate in by_action[place]] == [
            "metric_floor",
            "better_than_production",
            "export_parity",
        ]
    assert by_action[2, "rejected"][0].evidence == {"value": 0.1, "min": 0.6}


def test_two_gateways_on_one_database_keep_one_chain(database):
    """Of two transactions that overlap the second must see the first one's link."""
    others = [Database(database.engine.url.render_as_string(hide_password=False)) for _ in "ab"]

    def write(number: int) -> None:
        with others[number % 2].unit_of_work() as work:
            Trail(work.connection).note(
                f"model-{number}", 1, "promoted", actor="ada", reason="", cause_id=""
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(60)))
    for other in others:
        other.close()
    with database.read() as connection:
        found = Trail(connection).verify()
    assert (found.entries, found.problem) == (60, "")
