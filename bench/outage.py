"""Outages under a constant load: the books of the prediction log, what a consumer reads, and what callers notice.

The real broker is killed with SIGKILL and stays away; then registry gateway, MLflow and S3. Callers at both doors read
every answer and remember its prediction id; afterwards every id must have been read from `everloop.predictions` once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.inference.running import stop_in_order
from bench.report import OUT, Result, load_before, write
from bench.serving import deployment, logged, replicas
from bench.serving.callers import DOORS, Answer, Callers, calling
from bench.serving.ending import complain, finish
from bench.serving.logged import Logged
from bench.serving.models import NotServed, register
from bench.serving.replicas import Books, Replica
from bench.serving.rows import sample_row
from everloop import stack
from everloop.stack.endpoints import Endpoints

CALLERS = Callers(each=8, rate=150)
LONG_CALLERS = Callers(each=16, rate=400)
LONG_SPILL_BYTES = 8 * 2**20
LONG_SECONDS = 300
REGISTRY = ("registry_gateway", "mlflow", "s3")
DRAIN_SECONDS = 120
BACK_SECONDS = 120
LOOK_SECONDS = 1.0
PLACES = ("served", "logged", "buffered", "spilled", "unsampled", "dropped")


@dataclass(frozen=True)
class Plan:
    """What is done with one number of replicas."""

    replicas: int
    lead: float
    kafka_away: float
    registry_away: float
    until_full: bool


@dataclass(frozen=True)
class Phase:
    """A time under load, in seconds since 1970."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Look:
    """The sum of all replicas' books at a time."""

    time: float
    books: Books
    balanced: bool
    spill_bytes: int


@dataclass
class Seen:
    """Everything that was seen of a run."""

    plan: Plan
    phases: list[Phase] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    log: Logged = field(default_factory=Logged)
    epochs: tuple[str, ...] = ()
    full_at: int = 0
    """Bytes on disk when the first row was dropped; 0 where none was."""

    @property
    def end(self) -> Books:
        """The last books."""
        return self.looks[-1].books


def main() -> int:
    """Returns the exit status: 1 where a prediction failed, or a row is missing."""
    parser = argparse.ArgumentParser(prog="bench.outage", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one replica, 8 s away; unpublished")
    parser.add_argument(
        "--long",
        action="store_true",
        help=f"the broker stays away until the disk limit ({LONG_SPILL_BYTES >> 20} MiB here) is reached; unpublished",
    )
    options = parser.parse_args()
    stop_in_order()
    if options.quick:
        plans = [Plan(1, 4, 8, 4, False)]
    elif options.long:
        plans = [Plan(1, 10, LONG_SECONDS, 0, True)]
    else:
        plans = [Plan(count, 20, 60, 20, False) for count in (1, 2)]
    load = load_before()
    (OUT / "outage").mkdir(parents=True, exist_ok=True)
    runs = []
    for plan in plans:
        print(f"{plan.replicas} replica(s)", flush=True)
        with tempfile.TemporaryDirectory(dir=OUT / "outage", ignore_cleanup_errors=True) as home:
            runs.append(run(plan, Path(home)))
        for name, count in checks(runs[-1]).items():
            print(f"  {count} {name}", flush=True)
    write(judge(runs, load), plot(runs), publish=not (options.quick or options.long))
    wrong = [complain(checks(seen), f"{seen.plan.replicas} replica(s): ") for seen in runs]
    return int(any(wrong))


def run(plan: Plan, home: Path) -> Seen:
    """Starts everything, takes parts away under load, and stops everything."""
    row = sample_row()
    body = json.dumps({"rows": [row]}).encode()
    limit: dict[str, Any] = {"log_spill_bytes": LONG_SPILL_BYTES} if plan.until_full else {}
    seen = Seen(plan)
    with deployment.running(home, replicas=plan.replicas, **limit) as there:
        register(there, row, 1)
        address = there.inference_http_url.removeprefix("http://")
        found = replicas.find(address, body, plan.replicas)
        seen.epochs = tuple(replica.epoch for replica in found)
        spill = home / "data" / "inference" / "spill"
        watch = _Watch(seen, found, spill)
        callers = LONG_CALLERS if plan.until_full else CALLERS
        with calling(address, there.inference_grpc, row, callers) as answers:
            seen.answers = answers
            _phases(plan, there, home, watch)
        watch.until(lambda look: look.books.served == _settled(look.books), DRAIN_SECONDS)
        for replica in found:
            replica.close()
        seen.log = logged.read(there.kafka_bootstrap)
    return seen


def _phases(plan: Plan, there: Endpoints, home: Path, watch: _Watch) -> None:
    with watch.phase("before"):
        watch.during(plan.lead)
    # A broker that starts takes a core of the machine: that is the time after the outage, not a part of it.
    with ExitStack() as outage:
        outage.enter_context(deployment.away(home, "kafka"))
        with watch.phase("Kafka away"):
            if plan.until_full:
                watch.until(lambda look: look.books.dropped > 0, plan.kafka_away)
                watch.seen.full_at = watch.seen.looks[-1].spill_bytes
                watch.during(plan.lead)
            else:
                watch.during(plan.kafka_away)
        with watch.phase("Kafka back"):
            outage.close()
            stack.wait_healthy(home, "kafka", BACK_SECONDS)
            watch.until(lambda look: look.books.spilled == 0, DRAIN_SECONDS)
    with watch.phase("after"):
        watch.during(plan.lead)
    if plan.registry_away:
        with deployment.away(home, *REGISTRY), watch.phase("registry, MLflow, S3 away"):
            watch.during(plan.registry_away)


class _Watch:
    """Looks at the books, and names the time."""

    def __init__(self, seen: Seen, found: Sequence[Replica], spill: Path) -> None:
        self.seen = seen
        self._found = found
        self._spill = spill

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.time()
        yield
        self.seen.phases.append(Phase(name, began, time.time()))
        self._look()
        print(f"  {name}: {self.seen.end}", flush=True)

    def during(self, seconds: float) -> None:
        """Looks now and then for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._look()
            time.sleep(min(LOOK_SECONDS, max(0.0, deadline - time.monotonic())))

    def until(self, holds: Callable[[Look], bool], seconds: float) -> None:
        """Looks until something holds.

        Raises:
            NotServed: it never did.
        """
        deadline = time.monotonic() + seconds
        while not holds(self._look()):
            if time.monotonic() > deadline:
                raise NotServed(f"after {seconds:g} s the books are still {self.seen.end}")
            time.sleep(LOOK_SECONDS / 4)

    def _look(self) -> Look:
        books = [replica.books for replica in self._found]
        size = sum(_size(path) for path in self._spill.glob("*/*.events"))
        look = Look(time.time(), sum(books, Books()), all(one.balanced for one in books), size)
        self.seen.looks.append(look)
        return look


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # it has just been replayed


def _settled(books: Books) -> int:
    return books.logged + books.dropped + books.unsampled - books.adopted


def checks(seen: Seen) -> dict[str, int]:
    """What must be 0, by its name."""
    answered = [answer for answer in seen.answers if not answer.error]
    ids = {answer.prediction_id for answer in answered}
    missing = len(ids - seen.log.rows.keys())
    dropped = seen.end.dropped
    wrong = {
        "predictions failed": len(seen.answers) - len(answered),
        "requests were refused, as the replicas say": seen.end.refused,
        "looks at the books that do not balance": sum(not look.balanced for look in seen.looks),
        "rows are logged by the books but not read, or the reverse": abs(
            seen.end.logged - len(seen.log.rows)
        ),
        "predictions were read twice": seen.log.repeated_rows,
        "rows came out of the order of their replica": seen.log.out_of_order,
        "prediction ids were given twice": len(answered) - len(ids),
    }
    if seen.plan.until_full:
        # Rows of the callers and of the one who looked for the replicas are what may be dropped.
        wrong["answers are neither read nor dropped by the books"] = max(0, missing - dropped)
        wrong["bytes short of the disk limit when rows were dropped"] = max(
            0, LONG_SPILL_BYTES - LONG_SPILL_BYTES // 50 - seen.full_at
        )
        wrong["bytes on disk beyond the limit"] = max(
            0, max(look.spill_bytes for look in seen.looks) - LONG_SPILL_BYTES
        )
    else:
        wrong["answers are missing in the log"] = missing
        wrong["rows were dropped"] = dropped
    return wrong


def judge(runs: Sequence[Seen], load: float) -> Result:
    """Puts the figures together."""
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    for seen in runs:
        for phase in seen.phases:
            figures.append(_figures(seen, phase))
        for door in DOORS:
            before = _p99(seen, seen.phases[0], door)
            for phase in seen.phases[1:]:
                name = phase.name.replace(", ", "_").replace(" ", "_").lower()
                key = f"{door}.replicas{seen.plan.replicas}.p99.{name}_vs_before"
                ratios[key] = _digits(_p99(seen, phase, door) / before)
    consumed: list[dict[str, float | str]] = [
        {
            "replicas": seen.plan.replicas,
            "answers": sum(not answer.error for answer in seen.answers),
            "read by the consumer": len(seen.log.rows),
            **{name: count for name, count in checks(seen).items()},
            "events read again (at-least-once)": seen.log.repeated_events,
        }
        for seen in runs
    ]
    by_check: list[dict[str, float | str]] = [
        {
            "what": name,
            **{f"{row['replicas']} replica(s)": row[name] for row in consumed},
        }
        for name in consumed[0]
        if name != "replicas"
    ]
    callers = LONG_CALLERS if runs[0].plan.until_full else CALLERS
    return Result(
        "outage",
        "Kafka, and then registry, MLflow and S3, away under load",
        figures,
        ratios,
        f"{callers.each} callers at each door ask {callers.rate:g} times a second for single rows; books at the end of "
        "each phase, summed over the replicas, p99 in milliseconds. The broker is killed with SIGKILL. At any moment "
        "`served = logged + buffered + spilled + unsampled + dropped`.",
        load,
        tables={
            "Books and latency:": figures,
            "What a consumer of `everloop.predictions` reads:": by_check,
            "Ratios:": [{"ratio": f"`{key}`", "value": value} for key, value in ratios.items()],
        },
        more={
            "consumed": consumed,
            "checks": {
                f"{seen.plan.replicas} replica(s): {name}": count
                for seen in runs
                for name, count in checks(seen).items()
            },
        },
    )


def _figures(seen: Seen, phase: Phase) -> dict[str, float | str]:
    look = next(look for look in seen.looks if look.time >= phase.ended)
    failed = sum(
        bool(answer.error) for answer in seen.answers if phase.began <= answer.sent < phase.ended
    )
    return {
        "replicas": seen.plan.replicas,
        "phase": phase.name,
        "seconds": round(phase.ended - phase.began, 1),
        "requests": sum(phase.began <= answer.sent < phase.ended for answer in seen.answers),
        **{place: getattr(look.books, place) for place in PLACES},
        "failed": failed,
        **{f"p99 {door}": _digits(_p99(seen, phase, door) * 1e3) for door in DOORS},
    }


def _p99(seen: Seen, phase: Phase, door: str) -> float:
    times = [
        answer.latency
        for answer in seen.answers
        if answer.door == door and phase.began <= answer.sent < phase.ended
    ]
    return float(np.percentile(times, 99))


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def plot(runs: Sequence[Seen]) -> Figure:
    """Draws the books over time."""
    figure = Figure(figsize=(10, 3.2 * len(runs)), layout="constrained")
    for axis, seen in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        start = seen.looks[0].time
        times = [look.time - start for look in seen.looks]
        for place in ("served", "logged", "spilled", "dropped"):
            axis.plot(times, [getattr(look.books, place) for look in seen.looks], label=place)
        for phase in seen.phases:
            if phase.name.endswith("away"):
                axis.axvspan(
                    phase.began - start,
                    phase.ended - start,
                    color="#c0504d",
                    alpha=0.15,
                    linewidth=0,
                )
                axis.text(phase.began - start, axis.get_ylim()[1], phase.name, fontsize=7, va="top")
        axis.set_title(f"{seen.plan.replicas} replica(s)", fontsize=9)
        axis.set_ylabel("rows")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axis.set_xlabel("seconds")
    return figure


if __name__ == "__main__":
    finish(main)
