"""The trainer, put together: as a service, and as the commands that train from files and train one run again."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from everloop_contracts.pipeline import (
    Pipeline,
    PipelineError,
    load_pipeline,
    load_pipelines,
)
from everloop_contracts.stubs.everloop.training.v1 import training_pb2_grpc
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.inbox import InboxSweeper
from everloop_runtime.kafka import EventConsumer, OutboxRelay, Topics
from everloop_runtime.leases import Leases
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import run
from everloop_trainer.adapters.folder import FolderBooks, FolderDatasets, NoProduction, dataset_at
from everloop_trainer.adapters.mlflow import MlflowTracking
from everloop_trainer.adapters.s3 import S3Datasets
from everloop_trainer.adapters.services import IngestCutter, RegistryProduction
from everloop_trainer.consumer import GROUP, WATCHED, Handler
from everloop_trainer.domain import Cause, Dataset, State, Training, TrainingError
from everloop_trainer.families import load_family
from everloop_trainer.recipe import code_digest
from everloop_trainer.reproduce import Reproduction
from everloop_trainer.reproduce import reproduce as train_again
from everloop_trainer.request import Requests
from everloop_trainer.search import Cluster, SearchFailed, alone, joined
from everloop_trainer.servicer import TrainingServicer
from everloop_trainer.settings import TrainerSettings
from everloop_trainer.train import Train
from everloop_trainer.worker import Turns, Worker

__all__ = ["check", "main", "reproduce", "train"]

SERVICE = "everloop.training.v1.TrainingService"


def check(pipelines: Mapping[str, Pipeline]) -> None:
    """Checks what only the trainer knows about pipelines.

    Raises:
        PipelineError: a family that does not exist.
    """
    for name, pipeline in pipelines.items():
        for family in pipeline.training.families:
            try:
                load_family(family)
            except LookupError as error:
                raise PipelineError(f"{name}: training.families: {error}") from error


def main() -> int:
    """Runs the service; returns the exit status."""
    settings = TrainerSettings.load()
    telemetry.configure("trainer", settings.log_level)
    try:
        pipelines = load_pipelines(settings.pipelines_dir)
        check(pipelines)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    database = Database(settings.database_url)
    database.upgrade(Path(__file__).parent / "migrations")
    tracking = MlflowTracking(settings.mlflow_uri)
    token = settings.token.get_secret_value()
    train = Train(
        S3Datasets(settings),
        RegistryProduction(
            settings.registry_address, settings.patience_seconds, tracking.load, token
        ),
        tracking,
        Cluster(settings.data_dir / "searches", settings.trial_cpus, settings.trial_gpus),
        lambda: joined(settings.ray_address),
    )
    worker = Worker(
        database,
        pipelines,
        train,
        Leases(database, "training_leases"),
        Turns(settings.instance, timedelta(seconds=settings.lease_seconds)),
        attempts=settings.training_attempts,
        retry_seconds=settings.retry_seconds,
    )
    cutter = IngestCutter(settings.ingest_address, settings.patience_seconds, token)
    keep = timedelta(days=settings.inbox_retention_days)
    requests = Requests(database, pipelines, cutter, worker.wake, keep)
    servicer = TrainingServicer(database, requests)
    grpc = GrpcServer(
        settings,
        [SERVICE],
        [lambda server: training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)],
    )
    components = [
        MetricsServer(settings.metrics_address),
        Topics(settings.kafka_bootstrap),
        OutboxRelay(database, settings.kafka_bootstrap),
        InboxSweeper(database, settings.inbox_retention_days),
        worker,
        EventConsumer(
            settings.kafka_bootstrap,
            GROUP,
            WATCHED,
            Handler(requests),
            attempts=settings.consumer_max_attempts,
        ),
        grpc,
    ]
    try:
        return run(components, on_ready=grpc.ready)
    finally:
        database.close()


def train(arguments: Sequence[str]) -> int:
    """Trains from files to files, without the platform, and the same model each time.

    Trials run one after another and none is left out for its time: what a search tries next depends on what ended
    before, and how much it tries on the machine.

    Returns:
        0 where there is a model, 2 where the pipeline is wrong, 3 where the data give none.
    """
    parser = argparse.ArgumentParser("python -m everloop_trainer train")
    parser.add_argument("pipeline", type=Path, help="its YAML file")
    parser.add_argument(
        "--data", type=Path, required=True, help="Parquet file, or a folder of them"
    )
    parser.add_argument("--to", type=Path, required=True, help="folder for model and artifacts")
    parser.add_argument("--metrics", type=Path, required=True, help="JSON file for the metrics")
    options = parser.parse_args(arguments)
    telemetry.configure("trainer", "WARNING")
    try:
        pipeline = _repeatable(load_pipeline(options.pipeline))
        check({pipeline.name: pipeline})
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    trials = pipeline.training.search.trials
    try:
        dataset = dataset_at(pipeline, options.data)
        training = Training(
            id=_named(pipeline, dataset),
            position=1,
            dataset=dataset,
            state=State.RUNNING,
            cause=Cause.REQUEST,
            cause_id="",
            create_time=datetime.now(UTC),
        )
        with tempfile.TemporaryDirectory() as searches:
            trained = Train(
                FolderDatasets(list(pipeline.schema_.fields)),
                NoProduction(),
                FolderBooks(options.to, options.pipeline),
                Cluster(Path(searches)),
                alone,
            ).run(
                pipeline,
                training,
                started=lambda run_id, trials: None,
                progress=lambda now: print(f"trial {now.trials_done} of {trials}", file=sys.stderr),
                trial_ended=lambda family, failed: None,
            )
    except (EverloopError, TrainingError, SearchFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    rows = {"training_rows": trained.training_rows, "holdout_rows": trained.holdout_rows}
    metrics = {"family": trained.family, "holdout": trained.metrics, **rows}
    options.metrics.parent.mkdir(parents=True, exist_ok=True)
    options.metrics.write_text(json.dumps(metrics, indent=2) + "\n")
    return 0


def _repeatable(pipeline: Pipeline) -> Pipeline:
    """The pipeline with a search that does not depend on the machine."""
    search = pipeline.training.search.model_copy(
        update={"concurrency": 1, "time_budget": timedelta(days=365)}
    )
    training = pipeline.training.model_copy(update={"search": search})
    return pipeline.model_copy(update={"training": training})


def _named(pipeline: Pipeline, dataset: Dataset) -> str:
    """An id that says what a model is made of: declaration, data and code."""
    parts = (
        pipeline.model_dump_json(by_alias=True),
        *(file.md5 for file in dataset.files),
        code_digest(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def reproduce(arguments: Sequence[str]) -> int:
    """Trains a recorded run again and prints both outcomes.

    Returns:
        0 where the winner is the same and no metric differs by more than the tolerance, 1 where not, 3 where the run
        or its data cannot be read.
    """
    parser = argparse.ArgumentParser("python -m everloop_trainer reproduce")
    parser.add_argument("run_id")
    parser.add_argument("--no-trials", action="store_true")
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    settings = TrainerSettings.load()
    telemetry.configure("trainer", "WARNING")
    try:
        found = train_again(
            MlflowTracking(settings.mlflow_uri),
            S3Datasets(settings),
            options.run_id,
            trials=not options.no_trials,
            progress=lambda done, total: print(f"trial {done} of {total}", file=sys.stderr),
        )
    except (EverloopError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    same = found.within(options.tolerance)
    if options.json:
        told = {**dataclasses.asdict(found), "reproduced": same}
        # JSON has no word for infinity, the difference to a metric that is missing.
        told["difference"] = found.difference if math.isfinite(found.difference) else None
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(_told(found, same)))
    return 0 if same else 1


def _told(found: Reproduction, same: bool) -> list[str]:
    """A reproduction for a person: a line per figure, recorded and again."""
    then, now = found.recorded, found.again

    def figures(name: str, before: Any, after: Any) -> str:
        mark = "=" if before == after else "≠"
        return f"{name:<24} {mark}  {before!s:<24} {after}"

    lines = [
        f"run {found.run_id}, {found.trials} trials fitted again",
        f"{'':<24}    {'recorded':<24} again",
        figures("family", then.family, now.family),
    ]
    names = sorted(then.params.keys() | now.params.keys())
    lines += [figures(name, then.params.get(name), now.params.get(name)) for name in names]
    if then.validation is not None:
        lines.append(figures("validation metric", then.validation, now.validation))
    names = sorted(then.metrics.keys() | now.metrics.keys())
    lines += [figures(f"holdout {n}", then.metrics.get(n), now.metrics.get(n)) for n in names]
    lines.append(figures("model SHA-256", then.onnx_sha256[:12], now.onnx_sha256[:12]))
    if not found.same_code:
        lines.append("code: {} → {}".format(*found.revisions))
    if found.packages:
        shown = ", ".join(found.packages[:5])
        lines.append(f"{len(found.packages)} packages differ: {shown}")
    exact = same and found.same_model and found.difference == 0
    verdict = "reproduced bit for bit" if exact else "reproduced" if same else "NOT reproduced"
    lines.append(f"{verdict}; the largest difference of a metric is {found.difference:g}")
    return lines
