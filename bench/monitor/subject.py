"""What is measured, each as a process of its own: the monitor on a topic, and NannyML on the same chunks in memory.

Prints lines of JSON. The monitor: after every chunk how many are settled, and its processor seconds and memory so far;
`ready` when it has learned. NannyML: its processor seconds.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import sqlalchemy as sa

from bench.drift.methods import reference_file
from bench.drift.worlds import World, declare
from bench.monitor.traffic import CHUNK_ROWS, world
from everloop_monitor.adapters.nannyml import NannymlDetectors
from everloop_monitor.app import MIGRATIONS
from everloop_monitor.consumer import GROUP, handler
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeReferences
from everloop_monitor.record import watch_version
from everloop_monitor.retention import Bounds, keep_within_bounds
from everloop_monitor.worker import Chore, Worker
from everloop_runtime.database import Database
from everloop_runtime.events import PREDICTIONS
from everloop_runtime.kafka import EventConsumer
from everloop_runtime.service import Stopper

LOOK_SECONDS = 0.25
NEWEST = sa.text(
    "SELECT number, evaluated_at, failure FROM chunks"
    " WHERE evaluated_at IS NOT NULL OR failure IS NOT NULL ORDER BY position DESC LIMIT 1"
)
"""Without its report, which the monitor itself does not read again: the time of looking is in what is measured."""
BOUNDS = Bounds(
    retained_rows=200_000,
    retained_labels=200_000,
    retained_label_days=90,
    waiting_chunks=10,
    retained_chunks=10_000,
    retained_decisions=20_000,
    retained_versions=100,
)


def main() -> None:
    kind, features, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if kind == "nannyml":
        _nannyml(world(features, count))
    else:
        _monitor(world(features, 0), Path(sys.argv[4]), sys.argv[5], count)


def _monitor(known: World, home: Path, bootstrap: str, count: int) -> None:
    """The monitor without its outbox, until it has settled so many chunks."""
    pipelines = {"world": declare(known, CHUNK_ROWS)}
    database = Database(f"sqlite:///{home / 'monitor.db'}")
    database.upgrade(MIGRATIONS)
    watch_version(database, "promoted", "world", 1, "run", datetime.now(UTC))
    detectors = NannymlDetectors(FakeReferences({"run": reference_file(known)}), keep=1)
    detectors.fitted(pipelines["world"], 1, "run")
    evaluator = Evaluator(database, pipelines, detectors, retry_seconds=1)
    chores = (
        Chore(evaluator.show_lag, 1.0),
        Chore(lambda: keep_within_bounds(database, BOUNDS, datetime.now(UTC)), 5.0),
    )
    worker = Worker(evaluator, detectors.prepare, chores)
    consumer = EventConsumer(
        bootstrap, GROUP, (PREDICTIONS,), handler(database, pipelines, worker.wake), attempts=3
    )
    stopper = Stopper()
    for part in (worker, consumer):
        part.start(stopper)
    _say(ready=True)
    settled = 0
    while settled < count and not stopper.stopping:
        time.sleep(LOOK_SECONDS)
        with database.read() as connection:
            newest = connection.execute(NEWEST).first()
        if newest and newest.number + 1 > settled:
            settled = newest.number + 1
            _say(settled=settled, at=newest.evaluated_at, failure=newest.failure)
    stopper.stop()
    consumer.stop()
    worker.stop()
    database.close()


def _nannyml(known: World) -> None:
    """Drift of each feature, PCA of the numbers and CBPE, chunk by chunk."""
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
    import warnings

    import nannyml as nml

    warnings.simplefilter("ignore")
    numbers = [name for name in known.inputs if name not in known.texts]
    learned = known.reference.assign(label=known.reference.label.astype(int))
    outputs = {"y_true": "target", "y_pred": "label", "y_pred_proba": "score"}
    univariate = nml.UnivariateDriftCalculator(known.inputs, chunk_size=CHUNK_ROWS).fit(learned)
    pca = nml.DataReconstructionDriftCalculator(numbers, chunk_size=CHUNK_ROWS).fit(learned)
    cbpe = nml.CBPE(
        metrics=["roc_auc"], problem_type="classification_binary", chunk_size=CHUNK_ROWS, **outputs
    ).fit(learned)
    frames = [chunk.assign(label=chunk.label.astype(int)) for chunk in known.chunks]
    began = time.process_time()
    for frame in frames:
        univariate.calculate(frame)
        pca.calculate(frame)
        cbpe.estimate(frame.drop(columns="target"))
    _say(spent=time.process_time() - began)


def _say(**found: object) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                **found,
                "processor": usage.ru_utime + usage.ru_stime,
                "memory": psutil.Process().memory_info().rss,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
