"""Rows per second of one core from topic to verdict, beside NannyML and Evidently on the same chunks in memory.

`make bench-monitor` takes some minutes; `ARGS=--quick` is one round of few chunks, unpublished;
`ARGS=--long` looks at memory while ten million rows come, which takes as many minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from bench.drift.methods import METHODS
from bench.monitor.traffic import CHUNK_ROWS, events, world
from bench.report import OUT, ROOT, Result, load_before, medians, write
from everloop import stack
from everloop_contracts.events import INFERENCE
from everloop_runtime.events import PREDICTIONS, encode, new_event
from everloop_runtime.kafka import ensure_topics, producer

SIZES = {10: 8, 50: 4, 200: 2}
"""Chunks that are measured, by features; one more is not, which warms up."""
DELAYED = 50
DELAYS = 4
ROUNDS = 3
MIB = 2**20
NOTE = """\
Chunks of 5,000 rows, three features of ten texts. everloop: the monitor's consumer, database and worker on a real
broker, from the fetch of an event to the committed decision, with all default detectors, no labels and its model
learned before; processor time is the process's, events are made elsewhere. NannyML: Jensen-Shannon for each feature,
PCA of the numbers (texts fail there on pandas 3) and CBPE, fitted, one call of each a chunk, from frames in memory.
Evidently: its preset for data drift, from frames in memory. Medians of {rounds} interleaved rounds. Delay: from the
acknowledgement of the chunk's last event to the verdict. Ratio: ours to theirs, rows per second of processor time; goal
0.8. Everything here runs in one thread for each process."""


@dataclass
class Found:
    """Rows per processor second by features, of each; delays and memory of ours."""

    rates: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    memory: dict[int, float] = field(default_factory=dict)


class Monitor:
    """A running monitor that says what it has settled."""

    def __init__(self, process: subprocess.Popen[str], bootstrap: str) -> None:
        self._process = process
        self._client = producer(bootstrap)
        self._row = 0

    def send(self, known: Any, chunk: Any) -> float:
        """Sends a chunk; returns when its last event was acknowledged."""
        waiting = []
        for message in events(known, chunk, self._row):
            key, value, headers = encode(new_event(INFERENCE, "world", message))
            waiting.append(self._client.send(PREDICTIONS, value=value, key=key, headers=headers))
        self._row += len(chunk)
        for one in waiting:
            one.get(60)
        return time.time()

    def said(self) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the monitor ended"
        found: dict[str, Any] = json.loads(line)
        assert not found.get("failure"), found
        return found

    def until(self, settled: int) -> dict[str, Any]:
        """Waits until so many chunks are settled."""
        while True:
            found = self.said()
            if found.get("settled", 0) >= settled:
                return found

    def close(self) -> None:
        self._client.close()


@contextmanager
def monitor(bootstrap: str, home: Path, features: int, chunks: int) -> Iterator[Monitor]:
    """Starts a monitor of an empty topic."""
    home.mkdir()
    with _subject("monitor", features, chunks, str(home), bootstrap) as process:
        running = Monitor(process, bootstrap)
        try:
            assert running.said()["ready"]
            yield running
        finally:
            running.close()


@contextmanager
def _subject(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "bench.monitor.subject", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **single}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def ours(bootstrap: str, home: Path, features: int, count: int) -> tuple[float, float]:
    """Rows per processor second, and the most memory."""
    known = world(features, count + 1)
    with monitor(bootstrap, home, features, count + 1) as running:
        running.send(known, known.chunks[0])
        before = running.until(1)
        for chunk in known.chunks[1:]:
            running.send(known, chunk)
        after = running.until(count + 1)
    spent = after["processor"] - before["processor"]
    return count * CHUNK_ROWS / spent, after["memory"]


def delays(bootstrap: str, home: Path) -> list[float]:
    """Seconds from the last row of a chunk to its verdict, of a monitor that waits."""
    known = world(DELAYED, DELAYS + 1)
    found = []
    with monitor(bootstrap, home, DELAYED, DELAYS + 1) as running:
        for number, chunk in enumerate(known.chunks):
            sent = running.send(known, chunk)
            verdict = datetime.fromisoformat(running.until(number + 1)["at"]).replace(tzinfo=UTC)
            found.append(verdict.timestamp() - sent)
    return found[1:]


def nannyml(features: int, count: int) -> float:
    """Rows per processor second."""
    with _subject("nannyml", features, count) as process:
        assert process.stdout is not None
        spent = json.loads(process.stdout.readlines()[-1])["spent"]
    return float(count * CHUNK_ROWS / spent)


def evidently(features: int, count: int) -> float:
    """Rows per processor second."""
    return CHUNK_ROWS / METHODS["Evidently"](world(features, min(count, 2))).seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-monitor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of few chunks; unpublished")
    parser.add_argument("--long", action="store_true", help="memory over many rows")
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of --long")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    load = load_before()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        try:
            if options.long:
                _long(home, options.rows, load)
            else:
                rounds = 1 if options.quick else options.rounds
                sizes = {10: 4, 50: 2} if options.quick else SIZES
                found = _rounds(home, sizes, rounds)
                write(_result(found, rounds, load), _plot(found), publish=not options.quick)
        finally:
            stack.down(home / "stack")


@contextmanager
def _topic(home: Path) -> Iterator[tuple[str, Path]]:
    """A broker of its own with an empty topic, and a folder."""
    place = home / "stack"
    bootstrap = stack.up(place, only=("kafka",)).kafka_bootstrap
    ensure_topics(bootstrap, {PREDICTIONS: 1})
    try:
        yield bootstrap, home / uuid.uuid4().hex[:8]
    finally:
        stack.down(place)


def _rounds(home: Path, sizes: dict[int, int], rounds: int) -> Found:
    found = Found()
    for number in range(rounds):
        for features, count in sizes.items():
            rates = found.rates.setdefault(features, {})
            with _topic(home / f"{number}-{features}") as (bootstrap, folder):
                rate, memory = ours(bootstrap, folder, features, count)
            rates.setdefault("everloop", []).append(rate)
            rates.setdefault("NannyML", []).append(nannyml(features, count))
            rates.setdefault("Evidently", []).append(evidently(features, count))
            found.memory[features] = max(memory, found.memory.get(features, 0))
            said = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in rates.items())
            print(f"{features} features, rows per processor second: {said}", file=sys.stderr)
        with _topic(home / f"{number}-delay") as (bootstrap, folder):
            found.delays += delays(bootstrap, folder)
    return found


def _long(home: Path, rows: int, load: float) -> None:
    """Memory while many rows come, at 10 features."""
    known = world(10, 8)
    chunks = rows // CHUNK_ROWS
    samples: list[tuple[int, float]] = []
    with (
        _topic(home / "long") as (bootstrap, folder),
        monitor(bootstrap, folder, 10, chunks) as running,
    ):
        for number in range(chunks):
            running.send(known, known.chunks[number % len(known.chunks)])
            # The topic is on this machine's disk: no more than some chunks ahead.
            if number % 10 == 9 or number == chunks - 1:
                said = running.until(max(number - 10, 1))
                samples.append((said["settled"] * CHUNK_ROWS, said["memory"] / MIB))
    early = [memory for done, memory in samples if 0.2 * rows < done <= 0.4 * rows]
    late = [memory for done, memory in samples if done > 0.8 * rows]
    figures = [
        {"million rows": round(done / 1e6, 1), "resident MiB": round(memory, 1)}
        for done, memory in samples[:: max(len(samples) // 10, 1)]
    ]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot([done / 1e6 for done, _ in samples], [memory for _, memory in samples])
    axis.set(xlabel="million rows", ylabel="resident MiB", ylim=(0, None))
    result = Result(
        "monitor-memory",
        f"Memory of the monitor while {rows / 1e6:.2f} million rows come",
        figures,
        {"last_fifth.vs_second_fifth": median(late) / median(early)},
        "10 features, chunks of 5,000 rows; 200,000 rows are kept. A ratio of 1 means that memory is flat.",
        load,
        command='make bench-monitor ARGS="--long"',
    )
    write(result, figure)


def _result(found: Found, rounds: int, load: float) -> Result:
    figures: list[dict[str, float | str]] = []
    ratios = {}
    for features, rates in found.rates.items():
        row: dict[str, float | str] = {"features": features}
        row |= {f"{name}: rows/s per core": round(medians(v)) for name, v in rates.items()}
        row["resident MiB"] = round(found.memory[features] / MIB)
        figures.append(row)
        for peer in ("NannyML", "Evidently"):
            pairs = zip(rates["everloop"], rates[peer], strict=True)
            ratios[f"{features}.vs_{peer.lower()}"] = median(a / b for a, b in pairs)
    ratios["delay.seconds"] = median(found.delays)
    return Result(
        "monitor",
        "From topic to verdict, beside NannyML and Evidently in memory",
        figures,
        ratios,
        NOTE.format(rounds=rounds)
        + f" Delay at {DELAYED} features: median {median(found.delays):.2f} s, longest {max(found.delays):.2f} s"
        f" of {len(found.delays)}; goal 2 s.",
        load,
        more={"delays": found.delays},
    )


def _plot(found: Found) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axis = figure.subplots()
    names = list(next(iter(found.rates.values())))
    for place, name in enumerate(names):
        heights = [medians(rates[name]) for rates in found.rates.values()]
        axis.bar([x + 0.27 * place for x in range(len(heights))], heights, 0.25, label=name)
    axis.set_xticks(
        [x + 0.27 for x in range(len(found.rates))], [f"{n} features" for n in found.rates]
    )
    axis.set(yscale="log", ylabel="rows/s per core")
    axis.legend()
    return figure


if __name__ == "__main__":
    main()
