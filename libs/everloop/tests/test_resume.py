"""A push that is interrupted goes on where it was, and adds nothing twice."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from everloop import resume, wire
from everloop.cli import app, output
from everloop.client import Everloop
from everloop.errors import EverloopError
from everloop.push import batches

MODEL = "flight-delays"


@pytest.fixture
def run(addresses, tmp_path: Path, monkeypatch):
    """Runs `everloop` with a home whose stack is the fakes; what is kept between runs is in `state`."""
    monkeypatch.setattr(output.console, "width", 250)
    known = dataclasses.asdict(addresses)
    stack = {key: value for key, value in known.items() if key not in ("home", "pipelines_dir")}
    (tmp_path / "stack.json").write_text(json.dumps(stack | {"pipelines_dir": ""}))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def invoke(*arguments: str):
        return CliRunner().invoke(app, ["--home", str(tmp_path), *arguments], env={"TERM": "xterm"})

    return invoke


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some rows.jsonl"
    bad = '{"flight_id": "bad", "distance": "far"}'
    lines = [bad if n in (3, 1201) else json.dumps({"flight_id": str(n)}) for n in range(1300)]
    path.write_text("\n".join(lines))
    return path


def interrupt(monkeypatch, after: int, error: BaseException, answered: bool) -> None:
    """Lets the push end behind so many calls, before or after the next one was answered."""
    calls = 0

    def call(method, request, *rest):
        nonlocal calls
        calls += 1
        if calls <= after:
            return wire.call(method, request, *rest)
        if answered:
            wire.call(method, request, *rest)
        monkeypatch.setattr("everloop.client.call", wire.call)
        raise error

    monkeypatch.setattr("everloop.client.call", call)


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (EverloopError("UNAVAILABLE", "away"), 1)]
)
def test_what_is_printed_goes_on(run, fake, file, monkeypatch, error, status, after, answered):
    interrupt(monkeypatch, after, error, answered)
    done = run("push", str(file), "-p", MODEL)
    assert done.exit_code == status
    assert f"the first {500 * after:,} records had their answer before this" in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "--resume" in line]
    done = run(*shlex.split(line)[3:])  # behind the home, which `run` gives
    assert done.exit_code == 1, done.output  # some were rejected
    assert (
        f"the first {500 * after:,} records had their answer before: {500 * after - 1}"
        in done.stderr
    )
    assert "line 1202: distance is not a number" in done.output
    # Every call once, but for the one in flight: under the same id, with the same records.
    named = dict(zip(fake.pushes, fake.push_sizes, strict=True))
    assert list(named.values()) == [500, 500, 300]
    assert len(fake.pushes) == 3 + answered
    assert not list((file.parent / "state").rglob("*.json"))


def test_there_is_nothing_to_resume_after_the_end(run, file):
    run("push", str(file), "-p", MODEL)
    done = run("push", str(file), "-p", MODEL, "--resume")
    assert done.exit_code == 1
    assert "NOTHING_TO_RESUME" in done.stderr


def test_a_file_that_has_changed_is_not_gone_on_with(run, fake, file, monkeypatch):
    interrupt(monkeypatch, 1, KeyboardInterrupt(), False)
    run("push", str(file), "-p", MODEL)
    with file.open("a") as out:
        out.write('\n{"flight_id": "more"}')
    done = run("push", str(file), "-p", MODEL, "--resume")
    assert "FILE_CHANGED" in done.stderr
    assert len(fake.pushes) == 1


def test_another_pipeline_or_file_is_another_push(run, fake, file, monkeypatch):
    interrupt(monkeypatch, 1, KeyboardInterrupt(), False)
    run("push", str(file), "-p", MODEL)
    copy = file.with_name("copy.jsonl")
    copy.write_bytes(file.read_bytes())
    for arguments in ((str(copy), "-p", MODEL), (str(file), "-p", "other")):
        assert "NOTHING_TO_RESUME" in run("push", *arguments, "--resume").stderr


def test_without_resume_a_push_is_a_new_one(run, fake, file, monkeypatch):
    interrupt(monkeypatch, 1, KeyboardInterrupt(), False)
    run("push", str(file), "-p", MODEL)
    run("push", str(file), "-p", MODEL)
    assert len(set(fake.pushes)) == 4


def test_a_push_does_not_fail_where_nothing_can_be_kept(run, fake, file, tmp_path):
    (tmp_path / "state").write_text("a file, no folder")
    done = run("push", str(file), "-p", MODEL)
    assert "1,298 accepted, 2 rejected" in done.output


def test_a_broken_state_is_none(run, file, fake, monkeypatch):
    interrupt(monkeypatch, 1, KeyboardInterrupt(), False)
    run("push", str(file), "-p", MODEL)
    [state] = (file.parent / "state").rglob("*.json")
    state.write_text("{")
    assert "NOTHING_TO_RESUME" in run("push", str(file), "-p", MODEL, "--resume").stderr


def test_a_state_is_replaced_in_one_step(file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    state = resume.begin(file, MODEL, "here:1")
    resume.save(state)

    def dies(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            resume.save(dataclasses.replace(state, position=500))
    assert resume.resume(file, MODEL, "here:1") == state


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 5), st.data())
def test_from_the_start_of_any_batch_the_rest_is_cut_alike(sizes, rows, data):
    records = [bytes(size) for size in sizes]
    whole = list(batches(records, rows))
    for number in range(len(whole)):
        first = whole[number].first
        assert list(batches(records[first:], rows, first)) == whole[number:]


def test_a_push_goes_under_one_name(everloop: Everloop, fake):
    everloop.push(MODEL, [{"flight_id": str(n)} for n in range(5)], batch=2, start=10, push_id="p")
    assert fake.pushes == ["p/10", "p/12", "p/14"]
