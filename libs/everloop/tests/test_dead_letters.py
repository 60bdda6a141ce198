"""`everloop dead-letters`, as a person types it."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everloop.cli import app, output

MODEL = "flight-delays"
TOPIC = f"everloop.records.{MODEL}"


@pytest.fixture
def run(addresses, tmp_path: Path, monkeypatch):
    """Runs `everloop dead-letters` with a home whose stack is the fakes, on a wide screen."""
    monkeypatch.setattr(output.console, "width", 250)
    known = dataclasses.asdict(addresses)
    stack = {key: value for key, value in known.items() if key not in ("home", "pipelines_dir")}
    (tmp_path / "stack.json").write_text(json.dumps(stack | {"pipelines_dir": ""}))

    def invoke(*arguments: str):
        line = ["--home", str(tmp_path), "dead-letters", *arguments]
        return CliRunner().invoke(app, line, env={"TERM": "xterm"})

    return invoke


def test_a_list_says_what_was_wanted(run):
    done = run("list", MODEL)
    assert done.exit_code == 0, done.output
    assert [f"{TOPIC}/0/{offset}" in done.output for offset in (9, 5, 2)] == [True] * 3
    assert "-5 is not between 1 and 10000" in done.output
    assert len(json.loads(run("list", MODEL, "--limit", "2", "--json").stdout)) == 2


def test_a_list_is_narrowed_by_reason_and_time(run, fake):
    before = datetime.now(UTC)
    done = run(
        "list", MODEL, "--reason", "WRONG_TYPE", "--since", "2h", "--until", "2026-03-01T12:00Z"
    )
    assert done.exit_code == 0, done.output
    asked = fake.letter_filters[0]
    assert asked.reason == "WRONG_TYPE"
    assert asked.end_time.ToJsonString() == "2026-03-01T12:00:00Z"
    since = asked.start_time.ToDatetime(UTC)
    assert timedelta(0) <= since - (before - timedelta(hours=2)) < timedelta(minutes=1)


def test_one_is_shown_as_it_came(run):
    done = run("show", MODEL, f"{TOPIC}/0/5")
    assert done.exit_code == 0, done.output
    for text in ("OUT_OF_RANGE  distance", "header from  here", '{"distance": -5} [\\xff]', "UA-1"):
        assert text in done.output
    raw = run("show", MODEL, f"{TOPIC}/0/5", "--raw")
    assert raw.stdout_bytes == b'{"distance": -5} [\xff]'
    assert run("show", MODEL, "x").exit_code == 1


def test_a_replay_goes_page_by_page_under_one_name(run, fake):
    done = run("replay", MODEL, "--reason", "OUT_OF_RANGE")
    assert done.exit_code == 0, done.output
    assert "4 replayed, 2 stay: replayed before, or too large" in done.output
    names = [item.request_id.rpartition("/") for item in fake.replays]
    assert [number for *_, number in names] == ["0", "1"]
    assert len({name for name, *_ in names}) == 1
    assert [item.page_token for item in fake.replays] == ["", "more"]
    assert {item.filter.reason for item in fake.replays} == {"OUT_OF_RANGE"}


def test_named_ones_are_replayed(run, fake):
    done = run("replay", MODEL, f"{TOPIC}/0/5", f"{TOPIC}/0/2", "--json")
    assert json.loads(done.stdout) == {"replayed": 2, "skipped": 0}
    [asked] = fake.replays
    assert (list(asked.ids), asked.HasField("filter")) == ([f"{TOPIC}/0/5", f"{TOPIC}/0/2"], False)


def test_many_ids_go_in_several_calls(everloop, fake):
    names = [f"{TOPIC}/0/{offset}" for offset in range(1100)]
    assert everloop.replay_dead_letters(MODEL, names, request_id="r") == (1100, 0)
    assert [len(item.ids) for item in fake.replays] == [500, 500, 100]
    assert [item.request_id for item in fake.replays] == ["r/0", "r/1", "r/2"]


def test_a_replay_that_is_refused_may_be_asked_for_again(run, fake):
    fake.away = 1
    done = run("replay", MODEL, "--since", "2h")
    assert done.exit_code == 1
    assert "OUTBOX_FULL" in done.output
    assert run("replay", MODEL, "--since", "2h").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay", MODEL], "which ones?"),
        (["replay", MODEL, "--all", "--reason", "X"], "which ones?"),
        (["list", MODEL, "--since", "soon"], "'soon' is no time"),
        (["list", MODEL, "--since", "99999999999d"], "is no time"),
        (["list", "nothing"], "PIPELINE_NOT_FOUND"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, arguments, said):
    done = run(*arguments)
    assert done.exit_code == 1
    assert said in done.output
    assert "Traceback" not in done.output
