"""Starting and stopping a stack."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import psutil

from everloop.addresses import repository_root
from everloop.stack import credentials, endpoints, ports, processes
from everloop.stack.endpoints import Endpoints
from everloop.stack.errors import PartFailed, StackError, StackInterrupted
from everloop.stack.home import Home, default_home, locked
from everloop.stack.part import NotReady, Part, with_needs
from everloop.stack.parts import SERVICES, Catalog, build
from everloop.stack.supervisor import Supervisor, render
from everloop_contracts.pipeline import PipelineError, load_pipelines

__all__ = ["Event", "down", "kill", "up"]

# Each look costs some milliseconds of processor time, a part, here and in supervisord, which starting parts need.
_POLL_SECONDS = 0.25
# A part that ended this often within its deadline will not come up; waiting on would only hide why.
_TRIES = 3


@dataclass(frozen=True)
class Event:
    """One step of a start or stop.

    Attributes:
        part: Name of the part.
        phase: `preparing`, `starting`, `healthy`, `stopping` or `stopped`.
        text: Endpoint, progress or reason.
        elapsed_seconds: Since the call.
    """

    part: str
    phase: str
    text: str
    elapsed_seconds: float


OnEvent = Callable[[Event], None]


def _ignore(event: Event) -> None:
    pass


class _Reporter:
    """Gives events to a callback, one at a time, with the time since it was made."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._began = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, part: str, phase: str, text: str = "") -> None:
        with self._lock:
            self._on_event(Event(part, phase, text, time.monotonic() - self._began))


def up(
    home: Path | None = None,
    on_event: OnEvent = _ignore,
    *,
    only: Iterable[str] | None = None,
    pipelines: Path | None = None,
    catalog: Catalog = build,
) -> Endpoints:
    """Start a stack, or what is missing of a running one, and wait until all of it is healthy.

    Parts that do not depend on each other start at the same time. Whatever ends this call early, Ctrl-C included,
    stops what it started. A call for a running stack changes no settings of parts that run; one whose home was deleted
    under it is stopped and started anew.

    Args:
        home: Folder for all data, logs and `stack.json`; default `EVERLOOP_HOME` or `.everloop` in the checkout.
        on_event: Called with every step, never by two threads at once.
        only: Names of the parts wanted; what they need comes with them. Default: all.
        pipelines: Folder of pipeline specifications; default `EVERLOOP_PIPELINES_DIR` or `pipelines` in the checkout.
        catalog: Describes the parts; for tests.

    Returns:
        Where everything is, as in `stack.json`.

    Raises:
        PartFailed: A part did not become healthy.
        StackError: Anything else that went wrong.
    """
    place = Home.at(home or default_home())
    report = _Reporter(on_event)
    place.create()
    with locked(place.root / "stack.lock"):
        supervisor = Supervisor(place)
        if supervisor.alive() and not place.endpoints.exists():
            _clear(place, report)
            place.create()
        fresh = not supervisor.alive()
        parts: list[Part] = []
        running = {name for name, state in supervisor.states().items() if state.pid}
        try:
            there = _plan(place, pipelines) if fresh else endpoints.load(place)
            known = list(catalog(place, there))
            parts = _selected(known, only)
            _check_pipelines(parts, Path(there.pipelines_dir))
            if fresh:
                _check_callers()
                supervisor.launch(render(place, known, _common_environment(place, there)))
            _each_in_order(
                parts, lambda part, stop: _bring_up(place, supervisor, part, report, stop)
            )
        except BaseException:
            with _undisturbed():
                if fresh:
                    _take_down(place, parts, report)
                else:
                    _stop(supervisor, [part for part in parts if part.name not in running], report)
            raise
        return there


def down(
    home: Path | None = None, on_event: OnEvent = _ignore, *, catalog: Catalog = build
) -> None:
    """Stop a stack in reverse order of its start and leave no process of it behind. Data stay.

    Works as well where supervisord or any part was killed, and where the home was deleted while the stack ran. Nothing
    happens where nothing runs.
    """
    place = Home.at(home or default_home())
    report = _Reporter(on_event)
    if not place.root.exists():
        _clear(place, report)
        return
    with locked(place.root / "stack.lock"):
        try:
            parts = list(catalog(place, endpoints.load(place)))
        except StackError:
            _clear(place, report)
        else:
            _take_down(place, parts, report)


def kill(home: Path, part: str) -> int:
    """Send SIGKILL to the main process of a part and return its pid: what a crash looks like.

    Raises:
        StackError: It does not run.
    """
    state = Supervisor(Home.at(home)).states().get(part)
    if state is None or not state.pid:
        raise StackError(f"{part} does not run")
    os.kill(state.pid, signal.SIGKILL)
    return state.pid


def _plan(place: Home, pipelines: Path | None) -> Endpoints:
    """Lay out a stack that does not run: clear what a crash left, choose ports, write `stack.json`."""
    processes.kill_all(processes.marked(place.root))
    keys = credentials.obtain(place)
    folder = pipelines or Path(
        os.environ.get("EVERLOOP_PIPELINES_DIR") or repository_root() / "pipelines"
    )
    there = endpoints.plan(
        place,
        ports.choose(place),
        keys,
        folder.resolve(),
        os.environ.get("EVERLOOP_KAFKA_BOOTSTRAP"),
    )
    endpoints.save(place, there)
    return there


def _common_environment(place: Home, there: Endpoints) -> dict[str, str]:
    return {
        **there.environment(),
        processes.STACK_MARK: str(place.root),
        # The parts share the machine; thread pools as wide as it, one a process, would only fight.
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
    }


def _check_callers() -> None:
    """Says now what would keep the services from each other."""
    if os.environ.get("EVERLOOP_CALLERS_FILE") and not os.environ.get("EVERLOOP_TOKEN"):
        raise StackError(
            "EVERLOOP_CALLERS_FILE wants EVERLOOP_TOKEN: the services call each other too; "
            "`everloop token` makes one"
        )


def _selected(known: list[Part], only: Iterable[str] | None) -> list[Part]:
    names = [part.name for part in known]
    wanted = names if only is None else [name for name in only if name in names or name != "kafka"]
    if unknown := sorted(set(wanted) - set(names)):
        raise StackError(f"unknown part {', '.join(unknown)}; there are: {', '.join(names)}")
    return with_needs(known, wanted)


def _check_pipelines(parts: Iterable[Part], folder: Path) -> None:
    """Says now what every service would say at its start."""
    if any(part.name in SERVICES for part in parts):
        try:
            load_pipelines(folder)
        except PipelineError as error:
            raise StackError(str(error)) from error


def _each_in_order(
    parts: Sequence[Part], act: Callable[[Part, threading.Event], None], *, reverse: bool = False
) -> None:
    """Act on every part in a thread of its own, after its needs (reverse: after all that need it).

    The first error stops the others and is raised.
    """
    if not parts:
        return
    ordered = list(reversed(parts)) if reverse else list(parts)
    stop = threading.Event()
    tasks: dict[str, Future[None]] = {}

    def run(part: Part, after: list[Future[None]]) -> None:
        for task in after:
            task.result()
        act(part, stop)

    with ThreadPoolExecutor(len(ordered)) as pool:
        for part in ordered:
            before = [p.name for p in ordered if part.name in p.needs] if reverse else part.needs
            tasks[part.name] = pool.submit(
                run, part, [tasks[name] for name in before if name in tasks]
            )
        try:
            for task in as_completed(tasks.values()):
                task.result()
        except BaseException:
            stop.set()
            raise


def _bring_up(
    place: Home, supervisor: Supervisor, part: Part, report: _Reporter, stop: threading.Event
) -> None:
    def progress(text: str) -> None:
        if stop.is_set():
            raise StackInterrupted(f"{part.name} was not started")
        report(part.name, "preparing", text)

    if stop.is_set():
        raise StackInterrupted(f"{part.name} was not started")
    state = supervisor.states().get(part.name)
    if state is None or not state.pid:
        part.prepare(progress)
        if stop.is_set():
            raise StackInterrupted(f"{part.name} was not started")
        report(part.name, "starting", f"log {place.log(part.name)}")
        supervisor.start(part.name)
    deadline = time.monotonic() + part.deadline_seconds
    reason = "nothing was seen of it"
    seen: set[int] = set()
    while True:
        state = supervisor.states().get(part.name)
        if state is not None:
            seen.add(state.pid)
            if state.state == "FATAL" or len(seen - {0}) >= _TRIES:
                raise PartFailed(part.name, "ends as soon as it is started", place.log(part.name))
        try:
            part.probe()
        except NotReady as not_ready:
            reason = str(not_ready)
        else:
            if state is not None and state.pid:
                report(part.name, "healthy", part.endpoint)
                return
        if time.monotonic() > deadline:
            raise PartFailed(
                part.name,
                f"not healthy after {part.deadline_seconds:.0f} s: {reason}",
                place.log(part.name),
            )
        if stop.wait(_POLL_SECONDS):
            raise StackInterrupted(f"{part.name} was not waited for")


def _stop(supervisor: Supervisor, parts: Sequence[Part], report: _Reporter) -> None:
    running = {
        name
        for name, state in supervisor.states().items()
        if state.state not in ("STOPPED", "EXITED", "FATAL")
    }

    def act(part: Part, stop: threading.Event) -> None:
        if part.name in running:
            report(part.name, "stopping")
            supervisor.stop(part.name)
            report(part.name, "stopped")

    _each_in_order(parts, act, reverse=True)


def _take_down(place: Home, parts: Sequence[Part], report: _Reporter) -> None:
    supervisor = Supervisor(place)
    with contextlib.suppress(StackError, OSError):
        _stop(supervisor, parts, report)
    supervisor.shutdown()
    with contextlib.suppress(OSError, ValueError, psutil.Error, psutil.TimeoutExpired):
        psutil.Process(int((place.run / "supervisord.pid").read_text())).wait(timeout=5)
    left = processes.marked(place.root)
    processes.kill_all(left)
    ports.release(place)
    # Ray's session is in the run folder; its logs are all that anybody could want of it later.
    shutil.rmtree(place.run, ignore_errors=True)


def _clear(place: Home, report: _Reporter) -> None:
    """Stop whatever bears the mark of a stack of which nothing is written down any more."""
    count = len(processes.marked(place.root))
    if count:
        report(
            "stack", "stopping", f"{count} processes of a stack that {place.root} knows no more of"
        )
    _take_down(place, [], report)
    if count:
        report("stack", "stopped")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl-C cut a clean-up short, where signals are ours to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
