"""Ports: defaults first, never one that is taken or claimed."""

import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from everloop.stack import commands, ports
from everloop.stack.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = Home.at(tmp_path / "one")
    found.create()
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_no_default_can_be_the_source_port_of_a_connection() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.DEFAULTS.values()) < min(lowest, 32768)


def test_a_free_default_is_taken(home: Home) -> None:
    port = _free_port()
    assert ports.choose(home, {"kafka": port}) == {"kafka": port}


@pytest.mark.parametrize("interface", ["127.0.0.1", "0.0.0.0"])
def test_a_default_that_somebody_listens_on_gives_way(home: Home, interface: str) -> None:
    with socket.socket() as taken:
        taken.bind((interface, 0))
        taken.listen()
        port = taken.getsockname()[1]
        chosen = ports.choose(home, {"kafka": port})["kafka"]
    assert chosen != port
    assert ports.is_free(chosen)


def test_one_stack_never_gives_two_parts_the_same_port(home: Home) -> None:
    port = _free_port()
    chosen = ports.choose(home, {"kafka": port, "s3": port})
    assert len(set(chosen.values())) == 2


def test_a_port_claimed_by_another_stack_gives_way_until_it_is_released(
    home: Home, tmp_path: Path
) -> None:
    port = _free_port()
    other = Home.at(tmp_path / "two")
    other.create()
    ports.choose(home, {"kafka": port})

    assert ports.choose(other, {"kafka": port}) != {"kafka": port}
    ports.release(home)
    assert ports.choose(other, {"kafka": port}) == {"kafka": port}


def test_a_claim_of_a_process_that_is_gone_does_not_count(home: Home, tmp_path: Path) -> None:
    port = _free_port()
    other = Home.at(tmp_path / "two")
    other.create()
    (other.run / "ports.json").write_text(f'{{"pid": {2**22 + 1}, "ports": [{port}]}}')
    assert ports.choose(home, {"kafka": port}) == {"kafka": port}


def test_defaults_do_not_collide() -> None:
    assert len(set(ports.DEFAULTS.values())) == len(ports.DEFAULTS)


def test_what_was_replaced_is_told_with_its_default() -> None:
    chosen = {**ports.DEFAULTS, "mlflow": 20001}
    assert ports.replaced(chosen) == {"mlflow": (5000, 20001)}
    assert ports.replaced(ports.DEFAULTS) == {}


def test_up_says_which_ports_that_users_speak_to_were_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = SimpleNamespace(home="/here", ports={**ports.DEFAULTS, "mlflow": 20001, "s3": 20002})
    monkeypatch.setattr("everloop.stack.lifecycle.up", lambda *args, **kwargs: there)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(commands.app, ["up"])
    finally:
        signal.signal(signal.SIGTERM, before)
    told = done.stdout.splitlines()
    assert told[:3] == [
        "ports that were taken, and what is used instead:",
        "  mlflow           5000 → 20001",
        "  and 1 that the parts use among themselves",
    ]
