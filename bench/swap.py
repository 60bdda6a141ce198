"""Promotions and rollbacks through the registry gateway while predictions go on: what do callers notice?

Real broker, S3, MLflow, registry gateway and replicas on Ray. h2load asks at both doors at once; a few more callers
read every answer; the prediction log tells which version said what and when.
"""

from __future__ import annotations

import argparse
import bisect
import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from bench.flights_model import PIPELINES
from bench.inference.load import missing_tools
from bench.inference.running import stop_in_order
from bench.report import OUT, Result, load_before, write
from bench.serving import deployment, logged, replicas
from bench.serving.callers import DOORS, Answer, Callers, calling
from bench.serving.ending import complain, finish
from bench.serving.load import Requests, loading
from bench.serving.logged import Logged, Row
from bench.serving.models import MODEL, NotServed, Version, register
from bench.serving.processors import Span, looking
from bench.serving.replicas import Books, Replica
from bench.serving.rows import sample_row
from everloop import Everloop
from everloop.stack.endpoints import Endpoints
from everloop_contracts.pipeline import load_pipeline
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

CALLERS = 32
READERS = Callers(each=4, rate=80)
SWAP_SECONDS = 60
AFTER_SECONDS = 0.5
"""What follows a swap (the old model is freed, its files are pruned) counts as part of it."""
SETTLE_SECONDS = 60
LOOK_SECONDS = 0.05
WHOSE = (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
GOAL = 1.5
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Plan:
    """What is done."""

    replicas: int
    promotions: int
    rollbacks: int
    pause: float
    rate: float


@dataclass(frozen=True)
class Change:
    """One promotion or rollback; times in seconds since 1970.

    Attributes:
        version: that serves afterwards.
        kind: `promotion` or `rollback`.
        called: when the gateway was asked.
        answered: when it had answered.
        served: when every replica had said that it serves the version.
    """

    version: int
    kind: str
    called: float
    answered: float
    served: float


@dataclass(frozen=True)
class Seen:
    """Everything that was seen of a run.

    Attributes:
        versions: that took part.
        first: that served before the first change.
        changes: in order.
        requests: of h2load, by door.
        answers: of the callers who read them.
        log: what was logged.
        books: of all replicas at the end.
        memory: bytes of the replicas before the first and after the last change.
        artifacts: versions whose files the replicas' machine still keeps.
        load_cpu: cores that h2load took, and those that the callers who read did, with all that looked on.
        processors: what the stack's parts took of the processors, moment by moment.
    """

    versions: Sequence[Version]
    first: int
    changes: Sequence[Change]
    requests: dict[str, Requests]
    answers: Sequence[Answer]
    log: Logged
    books: Books
    memory: tuple[int, int]
    artifacts: int
    load_cpu: tuple[float, float]
    processors: Sequence[Span]


def main() -> int:
    """Returns the exit status: 1 where a request failed, an answer was wrong, or a whole run misses the goal."""
    parser = argparse.ArgumentParser(
        prog="bench.swap",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="2 promotions and a rollback; unpublished"
    )
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two changes")
    parser.add_argument(
        "--rate",
        type=float,
        default=500.0,
        help="requests a second at each door; 0: as many as are answered",
    )
    options = parser.parse_args()
    if missing := [line for line in missing_tools() if line.startswith("h2load")]:
        print("\n".join(missing), file=sys.stderr)
        return 2
    stop_in_order()
    counts = (2, 1) if options.quick else (20, 5)
    plan = Plan(options.replicas, *counts, options.pause, options.rate)
    load = load_before()
    (OUT / "swap").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT / "swap", ignore_cleanup_errors=True) as home:
        seen = run(plan, Path(home))
    result = judge(plan, seen, load)
    write(result, plot(seen), publish=not options.quick)
    wrong = complain(_wrong(seen))
    missed = {key: ratio for key, ratio in result.ratios.items() if ratio > GOAL}
    for key, ratio in missed.items():
        print(f"{key} is {ratio}, the goal is at most {GOAL}", file=sys.stderr)
    # The few changes of a quick run tell nothing about a p99.
    return int(wrong or (bool(missed) and not options.quick))


def run(plan: Plan, home: Path) -> Seen:
    """Starts everything, makes the changes under load, and stops everything."""
    pipeline = load_pipeline(PIPELINES / f"{MODEL}.yaml")
    row = sample_row()
    body = json.dumps({"rows": [row]}).encode()
    with deployment.running(home, _waiting(home), replicas=plan.replicas) as there:
        # Each promotion has a version of its own, which no replica has seen.
        versions = register(there, row, plan.promotions + 1, registry_pb2.STAGE_STAGING)
        first = versions[0].number
        with Everloop.connect(home) as everloop:
            everloop.promote(MODEL, first, reason="bench")
        address = there.inference_http_url.removeprefix("http://")
        found = replicas.find(address, body, plan.replicas)
        _wait_until_served(found, first)
        gc.collect()
        cpu = [_processor_seconds(who) for who in WHOSE]
        began = time.monotonic()
        with (
            loading(there, pipeline, row, CALLERS, plan.rate) as requests,
            calling(address, there.inference_grpc, row, READERS) as answers,
            looking(home, address) as processors,
        ):
            time.sleep(plan.pause)
            memory = replicas.memory(address)
            changes = _change(plan, there, found, versions)
            time.sleep(plan.pause)
            memory_after = replicas.memory(address)
        seconds = time.monotonic() - began
        h2load, own = (
            (_processor_seconds(who) - before) / seconds
            for who, before in zip(WHOSE, cpu, strict=True)
        )
        books = _settled(found)
        for replica in found:
            replica.close()
        artifacts = len(list((home / "data" / "inference" / "artifacts").glob("*/*")))
        return Seen(
            versions,
            first,
            changes,
            requests,
            answers,
            logged.read(there.kafka_bootstrap),
            books,
            (memory, memory_after),
            artifacts,
            (h2load, own),
            processors,
        )


def _waiting(home: Path) -> Path:
    """Folder of the model's pipeline as it is, but that versions wait for somebody to promote them."""
    folder = home / "pipelines"
    folder.mkdir(parents=True)
    text = (PIPELINES / f"{MODEL}.yaml").read_text()
    waiting = text.replace("approval: automatic", "approval: manual")
    assert waiting != text
    (folder / f"{MODEL}.yaml").write_text(waiting)
    return folder


def _processor_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _change(
    plan: Plan, there: Endpoints, found: Sequence[Replica], versions: Sequence[Version]
) -> list[Change]:
    """Makes the changes, one after the other."""
    changes: list[Change] = []
    with Everloop.connect(Path(there.home)) as everloop:
        for number in range(plan.promotions + plan.rollbacks):
            time.sleep(plan.pause)
            called = time.time()
            if number < plan.promotions:
                kind = "promotion"
                wanted = versions[number + 1].number
                version = everloop.promote(MODEL, wanted, reason="bench").version
            else:
                kind = "rollback"
                version = everloop.rollback(MODEL, reason="bench").version
            answered = time.time()
            _wait_until_served(found, version)
            changes.append(Change(version, kind, called, answered, time.time()))
            took = changes[-1].served - called
            print(f"  {kind:9} to version {version}: everywhere after {took:.2f} s", flush=True)
    return changes


def _wait_until_served(found: Sequence[Replica], version: int) -> None:
    deadline = time.monotonic() + SWAP_SECONDS
    waiting = list(found)
    while waiting := [replica for replica in waiting if replica.version != version]:
        if time.monotonic() > deadline:
            raise NotServed(f"version {version} is not served everywhere after {SWAP_SECONDS} s")
        time.sleep(LOOK_SECONDS)


def _settled(found: Sequence[Replica]) -> Books:
    """Returns the books once every row has been logged."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        books = sum((replica.books for replica in found), Books())
        if books.served == books.logged:
            return books
        if time.monotonic() > deadline:
            raise NotServed(f"the prediction log does not settle: {books}")
        time.sleep(0.2)


def _wrong(seen: Seen) -> dict[str, int]:
    """What must be 0, by its name."""
    answered = sum(len(one.seconds) for one in seen.requests.values())
    read = [answer for answer in seen.answers if not answer.error]
    return {
        "requests of the load failed": sum(one.failed for one in seen.requests.values()),
        "requests of the callers who read failed": len(seen.answers) - len(read),
        "requests were refused, as the replicas say": seen.books.refused,
        # What h2load abandons when its time is up may be in the log, so that this alone is not enough.
        "requests were answered without a row in the log": max(
            0, answered + len(read) - len(_rows_of_the_load(seen))
        ),
        "answers that were read are not in the log": sum(
            answer.prediction_id not in seen.log.rows for answer in read
        ),
        "logged answers name a version that did not serve then": _misplaced(seen),
        "rows were logged twice": seen.log.repeated_rows,
        "callers went back to an older version": _went_back(seen),
        "answers are not what their version says": _wrong_scores(seen),
    }


def _intervals(seen: Seen) -> list[tuple[int, float, float]]:
    """Versions in the order in which they served, each from the call that asked for it until nobody served it."""
    order = [seen.first, *(change.version for change in seen.changes)]
    begins = [0.0, *(change.called for change in seen.changes)]
    ends = [*(change.served for change in seen.changes), np.inf]
    return list(zip(order, begins, ends, strict=True))


def _rows_of_the_load(seen: Seen) -> list[Row]:
    """Logged rows since the first request: before it, versions were registered and replicas looked for."""
    sent = [float(one.sent.min()) for one in seen.requests.values()]
    start = min(*sent, *(answer.sent for answer in seen.answers))
    return [row for row in seen.log.rows.values() if row.began >= start]


def _misplaced(seen: Seen) -> int:
    rows = [(row.version, row.began, row.ended) for row in _rows_of_the_load(seen)]
    said, began, ended = np.array(rows).T
    right = np.zeros(len(rows), dtype=bool)
    for version, begin, end in _intervals(seen):
        right |= (said == version) & (ended >= begin) & (began <= end)
    return int((~right).sum())


def _went_back(seen: Seen) -> int:
    """Answers after which a caller, who stays with one replica, had seen a later version already."""
    intervals = _intervals(seen)
    at: dict[tuple[str, int], int] = {}
    wrong = 0
    for answer in sorted(seen.answers, key=lambda one: one.sent):
        if answer.error:
            continue
        who = (answer.door, answer.caller)
        possible = [
            place
            for place, (version, begin, end) in enumerate(intervals)
            if version == answer.version
            and answer.sent + answer.latency >= begin
            and answer.sent <= end
            and place >= at.get(who, 0)
        ]
        if possible:
            at[who] = possible[0]
        else:
            wrong += 1
    return wrong


def _wrong_scores(seen: Seen) -> int:
    scores = {version.number: version.score for version in seen.versions}
    return sum(
        abs(answer.score - scores.get(answer.version, np.inf)) > TOLERANCE
        for answer in seen.answers
        if not answer.error
    )


def judge(plan: Plan, seen: Seen, load: float) -> Result:
    """Puts the figures together."""
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    for door in DOORS:
        requests = seen.requests[door]
        inside = _inside(requests, seen.changes)
        for when, chosen in (("steady", ~inside), ("swapping", inside)):
            p50, p99, p999 = np.percentile(requests.seconds[chosen] * 1e3, [50, 99, 99.9])
            figures.append(
                {
                    "door": door,
                    "when": when,
                    "requests": int(chosen.sum()),
                    "p50 ms": _digits(p50),
                    "p99 ms": _digits(p99),
                    "p99.9 ms": _digits(p999),
                    "longest ms": _digits(requests.seconds[chosen].max() * 1e3),
                }
            )
        steady, swapping = (float(row["p99 ms"]) for row in figures[-2:])
        ratios[f"{door}.p99.swapping_vs_steady"] = _digits(swapping / steady)
    wrong = _wrong(seen)
    firsts = _first_answers(seen)
    swaps: list[dict[str, float | str]] = [
        {
            "change": kind,
            "count": len(
                times := [firsts[n] for n, c in enumerate(seen.changes) if c.kind == kind]
            ),
            "to the gateway's answer s": _digits(
                float(np.median([c.answered - c.called for c in seen.changes if c.kind == kind]))
            ),
            "to the first prediction s": _digits(float(np.median(times))),
            "slowest s": _digits(max(times)),
        }
        for kind in ("promotion", "rollback")
    ]
    checks: list[dict[str, float | str]] = [
        {"must be 0": name, "count": count} for name, count in wrong.items()
    ]
    rate = f"{plan.rate:g} requests/s at each door" if plan.rate else "as fast as they are answered"
    before, after = (round(size / 2**20) for size in seen.memory)
    return Result(
        "swap",
        "Promotions and rollbacks under load",
        figures,
        ratios,
        f"{CALLERS} callers at each door, HTTP (native) and gRPC (Open Inference Protocol) at once, {rate}, "
        f"{plan.replicas} replica(s), {len(seen.versions)} different models: each promotion is of a version that the "
        f"replicas have not loaded before, each rollback of the one before it. A swap lasts from the "
        f"call of the gateway until every replica says that it serves the version, and {AFTER_SECONDS:g} s more. "
        f"All parts share the cores with the load ({sum(seen.load_cpu):.2f} cores). {2 * READERS.each} callers "
        f"more read {len(seen.answers):,} answers; the log has {len(seen.log.rows):,} rows. Memory of the replicas "
        f"alone: {before} MiB before the first change, {after} MiB after the last; artifacts of {seen.artifacts} "
        f"versions on disk. Goal: the p99 of swaps at most {GOAL} times the steady one.",
        load,
        tables={
            "Latency:": figures,
            "Ratios:": [{"ratio": f"`{key}`", "value": value} for key, value in ratios.items()],
            "Changes (medians):": swaps,
            "Cores:": _cores(seen),
            "Checks:": checks,
        },
        more={
            "swaps": swaps,
            "checks": wrong,
            "memory_mib": {"before": before, "after": after},
            "answers_read": len(seen.answers),
            "rows_logged": len(seen.log.rows),
            "repeated_events": seen.log.repeated_events,
            "load_cores": [_digits(cores) for cores in seen.load_cpu],
        },
    )


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def _cores(seen: Seen) -> list[dict[str, float | str]]:
    """Cores that each part took while nothing changed and during swaps, those that took most first."""
    spent: dict[str, dict[bool, float]] = {}
    seconds = {False: 0.0, True: 0.0}
    for span in seen.processors:
        swapping = any(
            span.ended >= change.called and span.began <= change.served + AFTER_SECONDS
            for change in seen.changes
        )
        seconds[swapping] += span.ended - span.began
        for part, took in {**span.spent, "all": sum(span.spent.values())}.items():
            spent.setdefault(part, dict.fromkeys(seconds, 0.0))[swapping] += took
    return [
        {
            "part": part,
            "steady": _digits(took[False] / seconds[False]),
            "swapping": _digits(took[True] / seconds[True]),
        }
        for part, took in sorted(spent.items(), key=lambda item: -sum(item[1].values()))
    ]


def _inside(requests: Requests, changes: Sequence[Change]) -> npt.NDArray[np.bool_]:
    """Which requests were under way during a swap."""
    inside = np.zeros(len(requests.sent), dtype=bool)
    ended = requests.sent + requests.seconds
    for change in changes:
        inside |= (ended >= change.called) & (requests.sent <= change.served + AFTER_SECONDS)
    return inside


def _first_answers(seen: Seen) -> list[float]:
    """Seconds from each call of the gateway to the first prediction by the version."""
    times: dict[int, list[float]] = {}
    for row in seen.log.rows.values():
        times.setdefault(row.version, []).append(row.ended)
    for some in times.values():
        some.sort()
    return [
        times[change.version][bisect.bisect(times[change.version], change.called)] - change.called
        for change in seen.changes
    ]


def plot(seen: Seen) -> Figure:
    """Draws the p99 of every second, swaps shaded."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    start = min(float(one.sent.min()) for one in seen.requests.values())
    for axis, door in zip(figure.subplots(2, 1, sharex=True), DOORS, strict=True):
        requests = seen.requests[door]
        second = (requests.sent - start).astype(int)
        seconds = np.unique(second)
        for share, label in ((50, "p50"), (99, "p99")):
            values = [
                np.percentile(requests.seconds[second == one] * 1e3, share) for one in seconds
            ]
            axis.plot(seconds, values, label=label, linewidth=1)
        for change in seen.changes:
            colour = "#e8b04a" if change.kind == "promotion" else "#c0504d"
            axis.axvspan(
                change.called - start,
                change.served + AFTER_SECONDS - start,
                color=colour,
                alpha=0.3,
                linewidth=0,
            )
        axis.set_yscale("log")
        axis.set_ylabel(f"{door}, ms")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper right")
    axis.set_xlabel("seconds; shaded: promotions (yellow) and rollbacks (red) until served")
    return figure


if __name__ == "__main__":
    finish(main)
