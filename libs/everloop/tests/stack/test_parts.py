"""What the parts are told."""

from pathlib import Path

import pytest

from everloop.stack import credentials, endpoints, parts, ports
from everloop.stack.endpoints import Endpoints
from everloop.stack.errors import StackError
from everloop.stack.home import Home
from everloop.stack.part import with_needs
from everloop.stack.parts.kafka import server_properties


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home.at(tmp_path / "home")
    found.create()
    return found


def _plan(home: Home, bootstrap: str | None = None) -> Endpoints:
    keys = credentials.obtain(home)
    return endpoints.plan(home, dict(ports.DEFAULTS), keys, Path("/pipelines"), bootstrap)


def test_stack_json_gives_back_what_was_planned_and_is_private(home: Home) -> None:
    there = _plan(home)
    endpoints.save(home, there)
    assert endpoints.load(home.root) == there
    assert home.endpoints.stat().st_mode & 0o777 == 0o600


def test_a_home_without_a_stack_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="make up"):
        endpoints.load(tmp_path)


def test_credentials_are_generated_once_and_private(home: Home) -> None:
    first = credentials.obtain(home)
    assert credentials.obtain(home) == first
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.secrets.iterdir())


def test_every_service_gets_its_own_addresses_and_database(home: Home) -> None:
    there = _plan(home)
    found = {part.name: part for part in parts.build(home, there)}
    for name in parts.SERVICES:
        environment = found[name].environment
        assert environment["EVERLOOP_DATABASE_URL"].startswith(f"sqlite:////{str(home.root)[1:]}")
        assert environment["EVERLOOP_DATABASE_URL"].endswith(f"/{name}/{name}.db")
    bound = [found[name].environment["EVERLOOP_GRPC_ADDRESS"] for name in parts.SERVICES]
    assert len(set(bound)) == len(bound)
    assert there.environment()["EVERLOOP_INGEST_ADDRESS"] == bound[0]


def test_nothing_is_told_to_listen_beyond_the_loopback_interface(home: Home) -> None:
    for part in parts.build(home, _plan(home)):
        assert "0.0.0.0" not in " ".join(part.command)
    assert "0.0.0.0" not in server_properties(home.data("kafka"), 1, 2)


def test_a_configured_kafka_wins_and_no_broker_is_started(home: Home) -> None:
    there = _plan(home, "kafka.example:9092")
    assert "kafka" not in {part.name for part in parts.build(home, there)}
    assert there.environment()["EVERLOOP_KAFKA_BOOTSTRAP"] == "kafka.example:9092"


def test_a_wanted_part_brings_what_it_needs_before_itself(home: Home) -> None:
    found = [part.name for part in with_needs(parts.build(home, _plan(home)), ["inference"])]
    assert found.index("kafka") < found.index("registry_gateway") < found.index("inference")
    assert "ingest" not in found
