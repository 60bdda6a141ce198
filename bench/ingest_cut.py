"""What cutting version N+1 costs with one new shard, beside how much there is already and a build from scratch.

The use case itself, with its real database, git and DVC; object store and remote are folders, so that the network of
one machine does not hide the work. Each new shard brings new rows and late labels of rows of the one before.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from pyarrow import fs

import everloop_ingest
from bench.report import ROOT, Result, load_before, medians, write
from everloop_contracts.pipeline import FieldType, Pipeline, load_pipeline
from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.adapters.kafka import TopicEnds
from everloop_ingest.adapters.s3 import ShardBucket
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.build_parts import BuildLimits
from everloop_ingest.catch_up import CatchUp
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.domain import Batch, Partition, Shard, Version
from everloop_ingest.shards import IS_ACTUAL, OFFSET, PARTITION, TIMESTAMP
from everloop_ingest.turns import Turns
from everloop_ingest.validate import arrow_schema
from everloop_runtime.database import Database
from everloop_runtime.leases import Leases

HISTORY = (10, 100, 1_000)
"""Shards that are in a version already."""
SHARD_ROWS = 1_000
LABELS = 50
"""Rows of a shard that are late labels of the one before."""
REPEATS = 5
START = datetime(2026, 1, 1, tzinfo=UTC)
MIB = 2**20


class Idle:
    """No writer: the shards are there."""

    def flush(self, topic: str) -> None:
        """See `ports.Writer`."""


@dataclass(frozen=True)
class Cost:
    """Of one cut: seconds, processor seconds of this process, bytes that went to the remote."""

    seconds: float
    processor: float
    sent: int


class Place:
    """A pipeline's data on this disk."""

    def __init__(self, folder: Path) -> None:
        """Makes everything that ingest has, empty."""
        self.pipeline = load_pipeline(ROOT / "pipelines" / "flight-delays.yaml")
        database = Database(f"sqlite:///{folder / 'ingest.db'}")
        database.upgrade(Path(everloop_ingest.__file__).parent / "migrations")
        self.settlements, leases = Settlements(database), Leases(database, "cut_leases")
        self.bucket, self.remote = folder / "bucket", folder / "remote"
        # An object store needs no folders.
        of_pipeline = self.bucket / self.pipeline.name
        versions = [f"{name}/v{n + 1}" for name in ("parts", "labels") for n in range(REPEATS + 1)]
        for made in (self.remote, *(of_pipeline / name for name in ("shards", *versions))):
            made.mkdir(parents=True)
        local = fs.LocalFileSystem()
        self.shards = 0
        repository = DvcRepository(folder / "datasets", str(self.remote), {}, {}, local)
        self.cut_version = CutVersion(
            {self.pipeline.name: self.pipeline},
            cuts=Cuts(database, leases),
            versions=Versions(database),
            files=ShardBucket(local, str(self.bucket)),
            repositories={self.pipeline.name: repository},
            catch_up=CatchUp(self.settlements, TopicEnds("unused"), Idle()),
            turns=Turns(
                [self.pipeline.name],
                leases,
                holder="bench",
                lasts=timedelta(seconds=30),
                callers=1,
            ),
            limits=BuildLimits(folder / "work", 512 * MIB, 2, 65_536, 4),
        )

    def add(self, count: int) -> None:
        """Stores shards as the writer does."""
        for _ in range(count):
            first = self.shards * SHARD_ROWS
            key = f"{self.pipeline.name}/shards/{self.shards:06d}.parquet"
            path = self.bucket / key
            pq.write_table(shard(self.pipeline, self.shards), path, compression="zstd")
            partition = Partition(self.pipeline.record_topic, 0)
            end = first + SHARD_ROWS
            stored = Shard(
                pipeline=self.pipeline.name,
                partition=partition,
                first_offset=first,
                last_offset=end - 1,
                key=key,
                accepted=SHARD_ROWS,
                actuals=LABELS if self.shards else 0,
                rejected={},
                size_bytes=path.stat().st_size,
                first_event_time=None,
                last_event_time=None,
            )
            self.settlements.claim(partition, 0)
            batch = Batch(self.pipeline.name, partition, first, end, [])
            assert self.settlements.settle(batch, stored, (), ())
            self.shards += 1

    def cut(self) -> tuple[Cost, Version]:
        """Cuts a version from what is stored."""
        before = self._sent()
        began, processor = time.perf_counter(), time.process_time()
        version = self.cut_version.cut(self.pipeline, f"bench-{self.shards}", 0.0)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        return Cost(seconds, processor, self._sent() - before), version

    def _sent(self) -> int:
        return sum(path.stat().st_size for path in self.remote.rglob("*") if path.is_file())


def shard(pipeline: Pipeline, number: int) -> pa.Table:
    """Flights of one stretch of time, a little out of order, and late labels of the stretch before."""
    generator = np.random.default_rng(number)
    late = LABELS if number else 0
    fresh = SHARD_ROWS - late
    ids = [f"flight-{number:06d}-{row:04d}" for row in range(fresh)]
    earlier = [f"flight-{number - 1:06d}-{row:04d}" for row in range(late)]
    seconds = number * 3_600 + generator.integers(0, 3_700, fresh)
    columns: dict[str, pa.Array] = {}
    for name, spec in pipeline.schema_.fields.items():
        values: list[object]
        if name == pipeline.schema_.id:
            columns[name] = pa.array([*ids, *earlier])
            continue
        if name == pipeline.target.field:
            values = [None] * fresh
            columns[name] = pa.array([*values, *[True] * late])
            continue
        if name == pipeline.schema_.time:
            values = [START + timedelta(seconds=int(second)) for second in seconds]
        elif spec.type is FieldType.STRING:
            chosen = spec.categories or tuple(f"{name}-{n}" for n in range(30))
            values = random.Random(number).choices(chosen, k=fresh)
        else:
            values = list(np.round(generator.uniform(0, 100, fresh), 2))
        columns[name] = pa.array([*values, *[None] * late])
    table = pa.table(columns).cast(arrow_schema(pipeline))
    offsets = np.arange(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
    return (
        table.append_column(TIMESTAMP, pa.array(offsets))
        .append_column(PARTITION, pa.array(np.zeros(SHARD_ROWS, np.int32)))
        .append_column(OFFSET, pa.array(offsets))
        .append_column(IS_ACTUAL, pa.array([False] * fresh + [True] * late))
    )


def main() -> None:
    """Measures every history; the build from scratch is the first version of each."""
    load = load_before()
    figures: list[dict[str, float | str]] = []
    for history in HISTORY:
        with tempfile.TemporaryDirectory() as folder:
            place = Place(Path(folder))
            place.add(history)
            scratch, version = place.cut()
            costs = []
            for _ in range(REPEATS):
                place.add(1)
                cost, version = place.cut()
                costs.append(cost)
        assert version.rows is not None
        figures.append(
            {
                "shards before": history,
                "rows": version.rows.rows,
                "next version s": medians([cost.seconds for cost in costs]),
                "processor s": medians([cost.processor for cost in costs]),
                "MiB sent": medians([cost.sent / MIB for cost in costs]),
                "from scratch s": medians([scratch.seconds]),
                "from scratch processor s": medians([scratch.processor]),
                "from scratch MiB": medians([scratch.sent / MIB]),
            }
        )
        print(figures[-1], file=sys.stderr)
    ratios = {
        f"{row['shards before']}.vs_scratch": float(row["from scratch processor s"])
        / float(row["processor s"])
        for row in figures
    }
    title = "Cutting the next dataset version with one new shard, and all of it from scratch"
    note = (
        f"Shards of {SHARD_ROWS:,} messages of the flights pipeline, {LABELS} of them late labels of the shard before."
        f" The next version: medians of {REPEATS} cuts, one shard each; from scratch: one cut of all shards. Processor"
        " time is that of ingest's process, without git's. A ratio: from scratch over the next version."
    )
    write(Result("ingest-cut", title, figures, ratios, note, load), plot(figures))


def plot(figures: list[dict[str, float | str]]) -> Figure:
    """Processor time over history, both ways."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    shards = [float(row["shards before"]) for row in figures]
    for column, label in (
        ("from scratch processor s", "all from scratch"),
        ("processor s", "the next version"),
    ):
        axes.plot(shards, [float(row[column]) for row in figures], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="shards before", ylabel="processor seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
