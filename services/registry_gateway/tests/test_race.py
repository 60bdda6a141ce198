"""Fifty callers, one etag: one wins."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from everloop_registry_gateway.domain import Move, Request
from everloop_registry_gateway.promote import Promoter
from everloop_runtime.errors import EverloopError, Kind

CALLERS = 50


def race(promoters, versions, etag: str) -> Counter[str]:
    gate = threading.Barrier(CALLERS)

    def one(number: int) -> str:
        request = Request(
            Move.PROMOTION,
            "late",
            versions[number % len(versions)],
            etag=etag,
            request_id=f"r{number}",
            actor=f"caller {number}",
        )
        gate.wait()
        try:
            promoters[number % len(promoters)].move(request)
            return "won"
        except EverloopError as error:
            return error.kind

    with ThreadPoolExecutor(CALLERS) as pool:
        return Counter(pool.map(one, range(CALLERS)))


def test_one_of_fifty_promotions_with_the_same_etag_wins(world):
    world.use(approval="manual")
    for number in range(1, 11):
        world.register(number)
    outcomes = race([world.promoter], range(1, 11), world.etag())
    assert outcomes == {"won": 1, Kind.CONFLICT: CALLERS - 1}
    assert [kind for kind, _ in world.announced()].count("ModelPromoted") == 1
    assert world.aliases()["production"] == world.production()


def test_one_wins_also_where_two_gateways_share_a_database(world):
    world.use(approval="manual")
    for number in range(1, 11):
        world.register(number)
    second = Promoter(world.database, world.registry, world.artifacts)
    outcomes = race([world.promoter, second], range(1, 11), world.etag())
    assert outcomes["won"] == 1
    assert [kind for kind, _ in world.announced()].count("ModelPromoted") == 1
    world.reconcile()
    assert world.aliases()["production"] == world.production()


def test_without_an_etag_all_are_served_one_after_the_other(world):
    world.use(approval="manual")
    for number in range(1, 11):
        world.register(number)
    outcomes = race([world.promoter], [10], "")
    assert outcomes == {"won": CALLERS}
    assert [kind for kind, _ in world.announced()].count("ModelPromoted") == 1
