"""Transactions of the judge, of replicas and of people that overlap; only PostgreSQL lets them."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa

from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore

CANARY = {"strategy": "canary", "bake": "10m", "min_requests": 100}


def test_postgresql_is_tested(postgresql):
    """Skipped with its reason where it is not; every test that uses a database runs on both where it is."""


@pytest.fixture
def tried(world):
    world.register(1)
    world.use(rollout=CANARY)
    world.register(2)
    world.report(200)
    return world


def in_between(monkeypatch, target, name, act) -> list[threading.Thread]:
    """Has `act` done by another thread just before a step, or after the transaction where it has to wait for that."""
    step, threads = getattr(target, name), []

    def interrupted(*args, **kwargs):
        monkeypatch.setattr(target, name, step)
        threads.append(threading.Thread(target=act))
        threads[0].start()
        threads[0].join(timeout=1)
        return step(*args, **kwargs)

    monkeypatch.setattr(target, name, interrupted)
    return threads


def test_a_failure_while_the_judge_decides_rejects_or_comes_too_late(tried, monkeypatch):
    told = []
    threads = in_between(
        monkeypatch,
        trial,
        "promote",
        lambda: told.append(tried.report(0, replica="b", failure="x")),
    )
    tried.judge(minutes=10)
    threads[0].join()
    tried.reconcile()
    assert tried.rollout().state == "promoted"
    assert tried.stages() == {1: "archived", 2: "production"}
    assert "rollout_aborted" not in [action for _, action in tried.trail()]
    assert told in (["running"], ["promoted"])


def test_a_report_while_its_rollout_ends_leaves_nothing_behind(tried, monkeypatch):
    rollout = tried.rollout()
    threads = in_between(
        monkeypatch, RolloutStore, "set_report", lambda: tried.end(rollout, promote=False)
    )
    tried.report(201, sequence=2)
    threads[0].join()
    assert tried.rollout().state == "aborted"
    with tried.database.read() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM rollout_reports")) == 0
