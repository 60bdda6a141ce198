"""`everloop token`: what it prints, and what it leaves in the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from everloop.addresses import Addresses
from everloop.cli import app
from everloop_contracts.services import Service
from everloop_runtime.callers import Callers
from everloop_runtime.errors import EverloopError


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["token", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_who_has_the_token_may_call_what_was_said_and_its_file_has_no_token(tmp_path: Path) -> None:
    file = tmp_path / "callers.yaml"
    everything = run("me", "--file", str(file))
    shop = run("shop", "--for", "inference", "--for", "ingest", "--file", str(file))
    assert everything not in file.read_text() and shop not in file.read_text()
    assert Callers(file, Service.MONITOR).admit(f"Bearer {everything}") == "me"
    assert Callers(file, Service.INGEST).admit(f"Bearer {shop}") == "shop"
    with pytest.raises(EverloopError, match="may call inference, ingest"):
        Callers(file, Service.TRAINER).admit(f"Bearer {shop}")


@pytest.mark.parametrize("text", ["", "callers: []\n", "# nobody\ncallers:\n"])
def test_the_first_caller_of_a_file_that_lets_nobody_in(tmp_path: Path, text: str) -> None:
    file = tmp_path / "callers.yaml"
    file.write_text(text)
    made = run("me", "--file", str(file))
    assert Callers(file, Service.INGEST).admit(f"Bearer {made}") == "me"


@pytest.mark.parametrize("text", ["callers: {}\n", "[1, 2]\n", "a: [\n"])
def test_a_file_that_is_something_else_stays_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "callers.yaml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["token", "me", "--file", str(file)])
    assert done.exit_code == 1 and "is left as it is" in done.output
    assert file.read_text() == text


@pytest.mark.parametrize("name", ["the shop", "", "s" * 101, "trainer"])
def test_what_is_no_name_is_refused_before_it_is_written(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["token", name, "--file", str(tmp_path / "c.yaml")])
    assert done.exit_code == 1 and "INVALID_NAME" in done.output


def test_a_client_shows_what_the_environment_says_and_never_prints_it(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(
        '{"ingest": "a:1", "trainer": "a:2", "registry": "a:3", "monitor": "a:4",'
        ' "inference_http_url": "http://a:5", "inference_grpc": "a:6"}'
    )
    found = Addresses.discover(tmp_path, {"EVERLOOP_TOKEN": "secret-1"})
    assert found.headers == {"authorization": "Bearer secret-1"}
    assert "secret-1" not in repr(found)
    assert Addresses.discover(tmp_path, {}).headers == {}
