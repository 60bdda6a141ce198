"""The generated configuration, as supervisord's own reader understands it."""

from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from everloop.stack.errors import StackError
from everloop.stack.home import Home
from everloop.stack.part import Part
from everloop.stack.supervisor import render


def _part(**changes: object) -> Part:
    values: dict[str, object] = {
        "name": "kafka",
        "command": ("java", "-cp", "a b.jar", "100%"),
        "endpoint": "127.0.0.1:1",
        "probe": lambda: None,
        **changes,
    }
    return Part(**values)  # type: ignore[arg-type]


def _read(tmp_path: Path, text: str) -> ServerOptions:
    path = tmp_path / "supervisord.conf"
    path.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return options


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home.at(tmp_path / "home")
    found.create()
    return found


def test_supervisord_reads_back_what_a_part_says(tmp_path: Path, home: Home) -> None:
    part = _part(environment={"KEY": "100% a,b='c' d"}, stop_seconds=7)
    options = _read(tmp_path, render(home, [part], {"EVERLOOP_HOME": str(home.root)}))

    (program,) = options.process_group_configs[0].process_configs
    assert program.name == "kafka"
    assert program.command == "java -cp 'a b.jar' 100%"
    assert program.environment["KEY"] == "100% a,b='c' d"
    assert program.environment["EVERLOOP_HOME"] == str(home.root)
    assert program.environment["EVERLOOP_PART"] == "kafka"
    assert program.autostart is False
    assert program.stopwaitsecs == 7
    assert program.stopasgroup
    assert program.killasgroup
    assert program.stdout_logfile == str(home.log("kafka"))


def test_a_part_that_can_wait_steps_back(tmp_path: Path, home: Home) -> None:
    options = _read(tmp_path, render(home, [_part(niceness=10)], {}))
    (program,) = options.process_group_configs[0].process_configs
    assert program.command == "nice -n 10 java -cp 'a b.jar' 100%"


@pytest.mark.parametrize("value", ['say "no"', "two\nlines", "it's 'so'"])
def test_a_value_that_the_syntax_cannot_hold_is_refused(home: Home, value: str) -> None:
    with pytest.raises(StackError):
        render(home, [_part(environment={"KEY": value})], {})
