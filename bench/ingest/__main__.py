"""Records per second from topic to cut version and through the gRPC door, beside what the machine does without ingest.

`make bench-ingest` takes about five minutes; `ARGS=--quick` is one round of a tenth, unpublished; `ARGS=--long` sends
up to five million small records through the writer, as many as go in `--minutes`, and looks at its memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from bench.ingest.ceilings import bare_consumer, bare_producer, fill
from bench.ingest.measure import MIB, Cost, growth, median_cost, row
from bench.ingest.readings import SENSORS, SMALL, topic
from bench.ingest.service import LOOK_SECONDS, running
from bench.report import OUT, Result, load_before, write
from everloop import stack
from everloop.stack.endpoints import Endpoints

SIZES = (2_000, 20_000, 200_000)
STREAMED = 100_000
REPEATS = 3
LONG_RECORDS = 5_000_000
HELD_BACK = {"buffer_rows": 1, "shard_age_seconds": 3_600}
"""The writer stops after its first fetch, so that a stream's processor time is the door's alone."""

_NOTE = """\
Records of 1 KB with {fields} fields, {rounds} interleaved rounds, medians. From topic to cut version: the ingest
process on a real broker and S3, from its first fetch to the answer of CutVersion, with validation, shards,
deduplication, order, git and DVC; its processor time includes its start and git. The bare consumer is kafka-python
with crc32c, orjson and pyarrow, and checks nothing. The stream's server holds its writer back, so that its processor
time is the door's; the bare producer is librdkafka. Broker, S3 and callers share the cores. A ratio: ours over bare."""


@dataclass
class Rounds:
    """All that was measured."""

    versions: dict[int, list[Cost]] = field(default_factory=dict)
    consumers: dict[int, list[Cost]] = field(default_factory=dict)
    streams: list[Cost] = field(default_factory=list)
    producers: list[Cost] = field(default_factory=list)


class Bench:
    """The parts that all measurements share."""

    def __init__(self, home: Path, there: Endpoints) -> None:
        self._home = home
        self._there = there

    def rounds(self, sizes: tuple[int, ...], streamed: int, repeats: int) -> Rounds:
        """Measures ours and the ceilings in turn."""
        found = Rounds()
        bootstrap = self._there.kafka_bootstrap
        bytes_of = {
            size: fill(bootstrap, topic(f"readings-{size}"), size, SENSORS) for size in sizes
        }
        fill(bootstrap, topic("streamed"), 1, SENSORS)
        for _ in range(repeats):
            for size in sizes:
                name = f"readings-{size}"
                with running(self._folder(), self._there, name, SENSORS) as ingest:
                    cost = ingest.version(size, bytes_of[size])
                    found.versions.setdefault(size, []).append(cost)
                bare = bare_consumer(bootstrap, topic(name), size, self._folder())
                found.consumers.setdefault(size, []).append(bare)
                print(f"{size}: {cost.rate:.0f}/s, bare {bare.rate:.0f}/s", file=sys.stderr)
            with running(self._folder(), self._there, "streamed", SENSORS, HELD_BACK) as ingest:
                cost = ingest.stream(streamed, SENSORS)
            bare = bare_producer(bootstrap, topic("streamed"), streamed, SENSORS)
            found.streams.append(cost)
            found.producers.append(bare)
            print(
                f"stream: {cost.rate:.0f}/s, {cost.rate_per_core:.0f}/s per core,"
                f" bare {bare.rate:.0f}/s, {bare.rate_per_core:.0f}/s per core",
                file=sys.stderr,
            )
        return found

    def memory(self, records: int, seconds: float) -> list[tuple[int, float]]:
        """Records that the writer has settled, and its memory in MiB, while they come; ends after `seconds`."""
        bootstrap, name = self._there.kafka_bootstrap, "small"
        over = threading.Event()
        arguments = (bootstrap, topic(name), records, SMALL, over.is_set)
        filling = threading.Thread(target=fill, args=arguments)
        filling.start()
        samples: list[tuple[int, float]] = []
        ends = time.monotonic() + seconds
        with running(self._folder(), self._there, name, SMALL) as ingest:

            def look(accepted: int) -> bool:
                samples.append((accepted, ingest.memory() / MIB))
                return accepted >= records or time.monotonic() > ends

            ingest.until(look, 2 * seconds)
        over.set()
        filling.join()
        return samples[:: max(1, int(1 / LOOK_SECONDS))]

    def _folder(self) -> Path:
        folder = self._home / uuid.uuid4().hex[:8]
        folder.mkdir()
        return folder


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(prog="bench.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth; unpublished")
    parser.add_argument("--long", action="store_true", help="memory over five million records")
    parser.add_argument("--minutes", type=float, default=10.0, help="most that --long may take")
    options = parser.parse_args()
    load = load_before()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        there = _up(home / "stack")
        try:
            bench = Bench(home, there)
            if options.long:
                samples = bench.memory(LONG_RECORDS, 60 * options.minutes)
                write(judge_memory(samples, load), plot_memory(samples))
            elif options.quick:
                found = bench.rounds(tuple(size // 10 for size in SIZES), STREAMED // 10, 1)
                write(judge(found, load), plot(found), publish=False)
            else:
                found = bench.rounds(SIZES, STREAMED, REPEATS)
                write(judge(found, load), plot(found))
        finally:
            stack.down(home / "stack")


def _up(home: Path) -> Endpoints:
    """Starts broker and S3; on a busy machine a part may take longer than its deadline, but hardly twice."""
    try:
        return stack.up(home, only=("kafka", "s3"))
    except stack.PartFailed as error:
        print(f"once more, since {error.part} did not start in its time", file=sys.stderr)
        return stack.up(home, only=("kafka", "s3"))


def judge(found: Rounds, load: float) -> Result:
    """The table and the ratios: 1 is the ceiling."""
    figures, ratios = [], {}
    for size, costs in found.versions.items():
        ours, bare = median_cost(costs), median_cost(found.consumers[size])
        figures += [row("topic to cut version", ours), row("bare consumer to Parquet", bare)]
        ratios[f"{size}.vs_bare_consumer"] = ours.rate / bare.rate
    streamed, produced = median_cost(found.streams), median_cost(found.producers)
    figures += [row("gRPC stream", streamed), row("bare producer", produced)]
    ratios["stream.vs_bare_producer"] = streamed.rate / produced.rate
    ratios["stream.per_core_vs_bare_producer"] = streamed.rate_per_core / produced.rate_per_core
    return Result(
        "ingest",
        "Records through ingest, beside the same machine without it",
        figures,
        ratios,
        _NOTE.format(fields=SENSORS + 8, rounds=len(found.streams)),
        load,
    )


def judge_memory(samples: list[tuple[int, float]], load: float) -> Result:
    """A row for each tenth of the records."""
    records = samples[-1][0]
    tenths = [
        max(
            (memory for done, memory in samples if done * 10 // (records + 1) == tenth), default=0.0
        )
        for tenth in range(10)
    ]
    figures = [
        {"records": round(records * (tenth + 1) / 10), "resident MiB, at most": round(most, 1)}
        for tenth, most in enumerate(tenths)
    ]
    return Result(
        "ingest-memory",
        f"Memory of ingest while its writer settles {records / 1e6:.2f} million records",
        figures,
        {"last_fifth.vs_second_fifth": growth(samples)},
        f"Records of 0.2 KB, {SMALL + 8} fields, four partitions. A ratio of 1 means that memory is flat.",
        load,
        command="make bench-ingest ARGS=--long",
    )


def plot(found: Rounds) -> Figure:
    """Seconds over records, ours and the ceiling."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for label, costs in (
        ("topic to cut version", found.versions),
        ("bare consumer to Parquet", found.consumers),
    ):
        seconds = [median_cost(of_size).seconds for of_size in costs.values()]
        axes.plot(list(costs), seconds, marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="records of 1 KB", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_memory(samples: list[tuple[int, float]]) -> Figure:
    """Resident memory over records."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([done / 1e6 for done, _ in samples], [memory for _, memory in samples])
    axes.set(xlabel="million records", ylabel="resident MiB", ylim=(0, None))
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
