"""Order, supervision and failure, with parts that are only a health service."""

import functools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from everloop import stack
from everloop.stack import commands, processes
from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import Part
from everloop.stack.probes import grpc_serving
from everloop.stack.supervisor import Supervisor

SERVER = Path(__file__).with_name("serve_health.py")
Catalog = Callable[[Home, Endpoints], Sequence[Part]]


def _server(there: Endpoints, name: str, needs: tuple[str, ...] = (), delay: float = 0) -> Part:
    address = f"127.0.0.1:{there.ports[name]}"
    return Part(
        name=name,
        command=(sys.executable, str(SERVER), address, str(delay)),
        endpoint=address,
        probe=functools.partial(grpc_serving, address),
        needs=needs,
        deadline_seconds=30,
    )


def _two(home: Home, there: Endpoints) -> list[Part]:
    return [_server(there, "ingest", delay=0.3), _server(there, "trainer", needs=("ingest",))]


def _failing(home: Home, there: Endpoints) -> list[Part]:
    says = "import sys; sys.exit('no such pipeline folder')"
    broken = Part(
        name="trainer",
        command=(sys.executable, "-c", says),
        endpoint="",
        probe=functools.partial(grpc_serving, f"127.0.0.1:{there.ports['trainer']}"),
        needs=("ingest",),
        deadline_seconds=30,
    )
    return [_server(there, "ingest"), broken]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    stack.down(tmp_path, catalog=lambda home, there: [])
    assert processes.marked(tmp_path) == []
    assert not Home.at(tmp_path).run.exists()


def test_a_part_starts_only_when_what_it_needs_is_healthy(home: Path) -> None:
    events: list[tuple[str, str]] = []
    stack.up(home, lambda event: events.append((event.part, event.phase)), catalog=_two)
    assert events == [
        ("ingest", "starting"),
        ("ingest", "healthy"),
        ("trainer", "starting"),
        ("trainer", "healthy"),
    ]

    lines = stack.status(home, catalog=_two)
    assert [(line.part, line.state) for line in lines] == [
        ("ingest", "healthy"),
        ("trainer", "healthy"),
    ]
    assert all(line.pid and line.memory_bytes > 1_000_000 for line in lines)


def test_up_again_changes_nothing(home: Path) -> None:
    first = stack.up(home, catalog=_two)
    before = [line.pid for line in stack.status(home, catalog=_two)]
    assert stack.up(home, catalog=_two) == first
    assert [line.pid for line in stack.status(home, catalog=_two)] == before


def test_a_killed_part_comes_back(home: Path) -> None:
    stack.up(home, only=["ingest"], catalog=_two)
    killed = stack.kill(home, "ingest")
    assert stack.wait_healthy(home, "ingest", 20, not_pid=killed, catalog=_two) != killed


def test_a_part_that_ends_at_once_is_named_with_its_log_and_all_is_stopped(home: Path) -> None:
    with pytest.raises(stack.PartFailed) as raised:
        stack.up(home, catalog=_failing)
    failure = raised.value
    assert failure.part == "trainer"
    assert failure.log == home / "logs" / "trainer.log"
    assert "no such pipeline folder" in str(failure)
    assert str(failure.log) in str(failure)
    assert processes.marked(home) == []


def test_an_unknown_part_is_an_error_that_names_the_known_ones(home: Path) -> None:
    with pytest.raises(stack.StackError, match=r"unknown part nonsense.*ingest, trainer"):
        stack.up(home, only=["nonsense"], catalog=_two)


def test_a_killed_supervisor_leaves_nothing_that_down_or_up_cannot_clear(home: Path) -> None:
    stack.up(home, catalog=_two)
    left = [line.pid for line in stack.status(home, catalog=_two)]
    supervisor = int((Home.at(home).run / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    assert all(pid and psutil.pid_exists(pid) for pid in left)

    stack.up(home, catalog=_two)
    now = [line.pid for line in stack.status(home, catalog=_two)]
    assert not set(left) & set(now)

    os.kill(int((Home.at(home).run / "supervisord.pid").read_text()), signal.SIGKILL)
    stack.down(home, catalog=_two)
    assert processes.marked(home) == []


@pytest.mark.parametrize("folder_is_back", [False, True])
def test_down_finds_the_processes_of_a_stack_whose_home_was_deleted(
    home: Path, folder_is_back: bool
) -> None:
    stack.up(home, catalog=_two)
    shutil.rmtree(home)
    if folder_is_back:
        home.mkdir()
    events: list[stack.Event] = []
    stack.down(home, events.append, catalog=_two)
    assert processes.marked(home) == []
    assert [(event.part, event.phase) for event in events] == [
        ("stack", "stopping"),
        ("stack", "stopped"),
    ]


def test_up_starts_anew_where_the_home_of_a_running_stack_was_deleted(home: Path) -> None:
    stack.up(home, catalog=_two)
    left = {line.pid for line in stack.status(home, catalog=_two)}
    shutil.rmtree(home)
    stack.up(home, catalog=_two)
    lines = stack.status(home, catalog=_two)
    assert {line.state for line in lines} == {"healthy"}
    assert not left & {line.pid for line in lines}


def test_an_interrupt_during_up_stops_what_was_started(home: Path) -> None:
    def never(place: Home, there: Endpoints) -> list[Part]:
        return [_server(there, "ingest"), _server(there, "trainer", ("ingest",), delay=600)]

    main = threading.main_thread().ident
    assert main is not None

    def interrupt(event: stack.Event) -> None:
        if (event.part, event.phase) == ("trainer", "starting"):
            assert Supervisor(Home.at(home)).alive()
            signal.pthread_kill(main, signal.SIGINT)

    # Who runs the tests in the background has them start with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stack.up(home, interrupt, catalog=never)
    finally:
        signal.signal(signal.SIGINT, before)
    assert processes.marked(home) == []


def test_two_stacks_run_beside_each_other(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    try:
        here = stack.up(home, catalog=_two)
        there = stack.up(other, catalog=_two)
        assert not set(here.ports.values()) & set(there.ports.values())
        stack.down(other, catalog=_two)
        assert {line.state for line in stack.status(home, catalog=_two)} == {"healthy"}
    finally:
        stack.down(other, catalog=_two)


def test_a_broken_pipeline_is_told_before_anything_starts(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "late.yaml").write_text("pipeline: late\n")
    events: list[stack.Event] = []
    with pytest.raises(stack.StackError, match=r"late\.yaml:1: schema: is missing"):
        stack.up(home, events.append, pipelines=folder, catalog=_two)
    assert events == []


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_home_that_is_no_folder_is_one_line(tmp_path: Path, command: str) -> None:
    file = tmp_path / "file"
    file.touch()
    done = CliRunner().invoke(commands.app, [command, "--home", str(file)], env={"COLUMNS": "300"})
    assert done.exit_code == 1
    assert f"{file} cannot be made a folder: File exists" in done.stderr
    assert isinstance(done.exception, SystemExit)
