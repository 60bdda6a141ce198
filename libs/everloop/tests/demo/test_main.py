"""How the demo runs its steps, and what it leaves behind when one fails or it is interrupted."""

from __future__ import annotations

import io
import json
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from everloop import stack
from everloop.demo import __main__ as demo
from everloop.demo.run import Run, StepFailed
from everloop.demo.screen import Bar, Screen
from everloop.demo.slices import SLICES
from everloop.demo.steps import Step, _show_training
from everloop.errors import EverloopError
from everloop_contracts.stubs.everloop.training.v1 import training_pb2


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def screen(shown) -> Screen:
    return Screen(Console(file=shown, width=200))


@pytest.fixture
def downs(monkeypatch) -> list[Path]:
    """Homes whose stack was stopped."""
    stopped: list[Path] = []
    monkeypatch.setattr(stack, "down", lambda home: stopped.append(home))
    return stopped


@pytest.fixture(autouse=True)
def keep_signals():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def play(monkeypatch, home: Path, screen: Screen, *steps: Step, keep: bool = False) -> int:
    monkeypatch.setattr(demo, "STEPS", steps)
    return demo._run(home, screen, SLICES["small"], 100.0, keep)


def nothing(run: Run) -> None: ...


def test_a_failing_step_tells_its_name_its_log_and_the_log_s_end(
    tmp_path: Path, monkeypatch, screen, shown, downs
):
    def fail(run: Run) -> None:
        (run.home / "logs").mkdir()
        (run.home / "logs" / "trainer.log").write_text("first\n" * 50 + "the real reason\n")
        raise StepFailed("no model came")

    later: list[Run] = []
    code = play(
        monkeypatch,
        tmp_path / "demo",
        screen,
        Step("Train", "trainer", fail),
        Step("After", None, later.append),
    )
    text = shown.getvalue()
    assert code == 1 and not later
    assert "failed: Train" in text and "no model came" in text
    assert str(tmp_path / "demo" / "logs" / "trainer.log") in text
    assert "the real reason" in text and text.count("first") < 25
    assert downs == [tmp_path / "demo"] * 2  # what was left of an earlier run, and this one


@pytest.mark.parametrize(
    "error",
    [
        EverloopError("INTERNAL", "it broke"),
        stack.StackError("no port is free"),
        ValueError("not foreseen"),
    ],
)
def test_whatever_fails_ends_with_1_and_a_stopped_stack(
    tmp_path: Path, monkeypatch, screen, shown, downs, error
):
    def fail(run: Run) -> None:
        raise error

    assert play(monkeypatch, tmp_path / "demo", screen, Step("Train", None, fail)) == 1
    assert str(error) in shown.getvalue()
    assert len(downs) == 2


def test_ctrl_c_stops_what_runs_beside_and_the_stack(
    tmp_path: Path, monkeypatch, screen, shown, downs
):
    class Beside:
        failure = None
        stopped = False

        def stop(self) -> None:
            self.stopped = True

    beside = Beside()

    def interrupt(run: Run) -> None:
        run.traffic = beside  # type: ignore[assignment]
        raise KeyboardInterrupt

    assert play(monkeypatch, tmp_path / "demo", screen, Step("Train", None, interrupt)) == 130
    assert beside.stopped and len(downs) == 2


def test_keep_leaves_the_stack_up_after_a_good_run_only(
    tmp_path: Path, monkeypatch, screen, shown, downs
):
    home = tmp_path / "demo"
    assert play(monkeypatch, home, screen, Step("Good", None, nothing), keep=True) == 0
    assert len(downs) == 1
    assert f"everloop --home {home} down" in shown.getvalue()

    def fail(run: Run) -> None:
        raise StepFailed("no")

    assert play(monkeypatch, home, screen, Step("Bad", None, fail), keep=True) == 1
    assert len(downs) == 3


def test_a_run_starts_from_nothing_but_the_last_results(tmp_path: Path, monkeypatch, screen, downs):
    home = tmp_path / "demo"
    (home / "data" / "kafka").mkdir(parents=True)
    for name in ("summary.json", "report.html", "stack.json"):
        (home / name).write_text("the last run's")
    seen: list[str] = []

    def interrupt(run: Run) -> None:
        seen.extend(sorted(entry.name for entry in run.home.iterdir()))
        raise KeyboardInterrupt

    assert play(monkeypatch, home, screen, Step("Look", None, interrupt)) == 130
    assert seen == ["report.html", "summary.json"]
    assert (home / "report.html").read_text() == "the last run's"


def test_two_demos_cannot_share_a_home(tmp_path: Path):
    first = demo._lock(tmp_path / "demo")
    assert first is not None
    assert demo._lock(tmp_path / "demo") is None
    first.close()
    again = demo._lock(tmp_path / "demo")
    assert again is not None
    again.close()


@pytest.fixture
def run(tmp_path: Path, screen) -> Run:
    return Run(tmp_path, tmp_path, SLICES["small"], 100.0, screen)


def test_waiting_returns_what_was_waited_for(run):
    answers = iter([None, 0, "found"])
    ticks: list[int] = []
    assert run.wait("it", 30, lambda: next(answers), lambda: ticks.append(1)) == "found"
    assert len(ticks) == 2


def test_waiting_too_long_names_what_did_not_happen_and_the_last_error(run):
    def unavailable() -> bool:
        raise EverloopError("UNAVAILABLE", "ingest does not answer")

    with pytest.raises(StepFailed, match=r"the cut .* within 0 s \(ingest does not answer\)"):
        run.wait("the cut", 0.3, unavailable)


def test_an_error_that_does_not_pass_ends_the_wait_at_once(run):
    def refused() -> bool:
        raise EverloopError("PIPELINE_NOT_FOUND", "no")

    with pytest.raises(EverloopError):
        run.wait("it", 30, refused)


def test_what_fails_beside_ends_the_wait(run):
    run.feed = type("Broken", (), {"failure": OSError("the broker is gone")})()
    with pytest.raises(StepFailed, match="the broker is gone") as caught:
        run.wait("it", 30, lambda: None)
    assert caught.value.part == "ingest"


def test_bars_print_plain_lines_where_there_is_no_terminal(screen, shown, monkeypatch):
    monkeypatch.setattr("everloop.demo.screen.PLAIN_SECONDS", 0.0)
    with screen, screen.bar("flights", 1000) as bar:
        bar.to(250, "March, v1")
    assert "flights: 250 of 1,000 March, v1" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


@pytest.mark.parametrize(
    ("done", "said"),
    [(3, "searching, best mlp 0.7100"), (6, "evaluating and logging the best, best mlp 0.7100")],
)
def test_what_a_training_does_is_said_of_the_training_and_not_of_its_trials(run, done, said):
    training = training_pb2.Training(
        state=training_pb2.Training.STATE_RUNNING,
        trials_done=done,
        trials_total=6,
        best_family="mlp",
        best_metric=0.71,
    )
    run.pipeline = SimpleNamespace(name="flight-delays")
    run.client = SimpleNamespace(trainings=lambda name, limit: [training])
    told: list[tuple[int, str, int]] = []
    bar = SimpleNamespace(to=lambda at, note, total: told.append((at, note, total)))
    _show_training(run, cast(Bar, bar))
    assert told == [(done, said, 6)]


def test_lines_from_several_threads_stay_whole(screen, shown):
    threads = [
        threading.Thread(target=lambda n=n: [screen.line(json.dumps([n] * 20)) for _ in range(20)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = shown.getvalue().splitlines()
    assert len(lines) == 80
    assert all(len(set(json.loads(line))) == 1 for line in lines)
