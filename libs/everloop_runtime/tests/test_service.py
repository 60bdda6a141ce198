"""The life of a service: order, readiness, signals, exit codes."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from everloop_runtime.service import Component, Stopper, backoff, run


@pytest.fixture(autouse=True)
def handlers():
    """Signals are the process's: give them back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class Part(Component):
    """Writes down what happens to it."""

    def __init__(self, name: str, story: list[str], on_start=None, on_stop=None) -> None:
        self.name = name
        self._story = story
        self._on_start = on_start
        self._on_stop = on_stop

    def start(self, stopper: Stopper) -> None:
        if self._on_start:
            self._on_start(stopper)
        self._story.append(f"+{self.name}")

    def stop(self) -> None:
        self._story.append(f"-{self.name}")
        if self._on_stop:
            self._on_stop()


def stop_now(stopper: Stopper) -> None:
    stopper.thread("stopper", stopper.stop)


def boom(*_: object) -> None:
    raise RuntimeError("boom")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_parts_start_in_order_and_stop_in_reverse_on_a_signal(number):
    story: list[str] = []

    def ready(now: bool) -> None:
        story.append("ready" if now else "not ready")
        if now:
            os.kill(os.getpid(), number)

    assert run([Part("a", story), Part("b", story), Part("c", story)], ready) == 0
    assert story == ["+a", "+b", "+c", "ready", "not ready", "-c", "-b", "-a"]


def test_a_part_that_does_not_start_stops_those_before_it():
    story: list[str] = []
    assert run([Part("a", story), Part("b", story, boom), Part("c", story)]) == 1
    assert story == ["+a", "-a"]


def test_a_part_that_does_not_stop_keeps_the_others_from_nothing():
    story: list[str] = []
    parts = [Part("a", story), Part("b", story, on_stop=boom), Part("c", story, stop_now)]
    assert run(parts) == 1
    assert story[-3:] == ["-c", "-b", "-a"]


def test_a_thread_that_fails_ends_the_service_with_1():
    story: list[str] = []
    parts = [Part("a", story, lambda stopper: stopper.thread("worker", boom) and None)]
    assert run(parts) == 1
    assert story == ["+a", "-a"]


def test_a_stop_while_starting_starts_no_more_and_is_never_ready():
    story: list[str] = []
    seen: list[bool] = []

    def stop(stopper: Stopper) -> None:
        stopper.stop()

    assert run([Part("a", story, stop), Part("b", story)], seen.append) == 0
    assert story == ["+a", "-a"]
    assert seen == [False]


def test_parts_are_told_to_stop_before_they_are_stopped():
    stoppers: list[Stopper] = []
    seen: list[bool] = []

    def start(stopper: Stopper) -> None:
        stoppers.append(stopper)
        stop_now(stopper)

    run([Part("a", [], start, lambda: seen.append(stoppers[0].stopping))])
    assert seen == [True]


def test_waiting_ends_when_the_stop_comes():
    stopper = Stopper()
    assert stopper.wait(0.001) is False
    ended = threading.Event()

    def wait() -> None:
        assert stopper.wait(30)
        ended.set()

    stopper.thread("waiter", wait)
    stopper.stop()
    assert ended.wait(5)
    assert not stopper.failed


def test_pauses_double_up_to_the_longest_however_long_an_outage_lasts():
    assert [backoff(attempt, 1.0, 10.0) for attempt in (1, 2, 3, 4, 5)] == [1, 2, 4, 8, 10]
    assert backoff(100_000, 0.4, 10.0) == 10
