"""Composition root: builds the adapters, starts everything, stops it in reverse."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from pyarrow import fs

from everloop_contracts.pipeline import Pipeline, PipelineError, load_pipelines
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2_grpc
from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.adapters.kafka import TopicEnds, TopicProducer
from everloop_ingest.adapters.lfs import LfsRepository
from everloop_ingest.adapters.s3 import ShardBucket
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.erasures import Erasures
from everloop_ingest.adapters.store.letters import LetterStore
from everloop_ingest.adapters.store.quarantine import Quarantine
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.adapters.store.schemas import Schemas
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.adapters.store.upkeep import Upkeep
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.adopt_pipelines import adopt_pipelines
from everloop_ingest.buffers import Limits
from everloop_ingest.build_parts import INDEX, BuildLimits
from everloop_ingest.catch_up import CatchUp
from everloop_ingest.compact_shards import CompactShards
from everloop_ingest.consumer import DatasetWriter
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.erase_letters import EraseLetters
from everloop_ingest.erase_records import EraseRecords
from everloop_ingest.pipeline_stats import PipelineStats
from everloop_ingest.ports import DataRepository, Repositories
from everloop_ingest.push import Push
from everloop_ingest.reclaim import Reclaim
from everloop_ingest.release_version import ReleaseVersion
from everloop_ingest.schedule import Chores, Retention, Scheduler
from everloop_ingest.servicer import IngestServicer, UseCases
from everloop_ingest.settings import IngestSettings
from everloop_ingest.settle import Settle
from everloop_ingest.stream import RecordStream, StreamLimits
from everloop_ingest.sweep_orphans import SweepOrphans
from everloop_ingest.turns import Turns
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.kafka import OutboxRelay, Topics
from everloop_runtime.leases import Leases
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.s3 import s3_filesystem
from everloop_runtime.service import Component, run

__all__ = ["clear_work", "run_service"]

SERVICE = "everloop.ingest.v1.IngestService"

_Pipelines = dict[str, Pipeline]
"""By name."""


def run_service() -> int:
    """Runs ingest until it is told to stop; returns the exit status."""
    settings = IngestSettings.load()
    telemetry.configure("ingest", settings.log_level)
    # It reports every pause of more than 0.1 s, which decoding a full fetch takes.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
    try:
        pipelines = load_pipelines(settings.pipelines_dir)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    with closing(Database(settings.database_url)) as database:
        database.upgrade(Path(__file__).parent / "migrations")
        try:
            adopt_pipelines(
                pipelines,
                Schemas(database),
                Versions(database),
                settings.max_record_bytes,
                datetime.now(UTC),
            )
            adapters = _adapters(settings, pipelines, database)
        except EverloopError as error:
            print(error, file=sys.stderr)
            return 2
        clear_work(_work(settings))
        with closing(adapters.ends):
            use_cases, chores = _use_cases(settings, pipelines, adapters)
            grpc = _grpc(settings, pipelines, adapters, use_cases)
            components = _components(settings, pipelines, adapters, use_cases.cut, chores)
            return run([*components, grpc], on_ready=grpc.ready)


@dataclass(frozen=True, slots=True)
class _Adapters:
    """The systems outside, and the writer, which the use cases hurry."""

    database: Database
    files: ShardBucket
    repositories: Repositories
    ends: TopicEnds
    producer: TopicProducer
    writer: DatasetWriter


def _adapters(settings: IngestSettings, pipelines: _Pipelines, database: Database) -> _Adapters:
    bootstrap = settings.kafka_bootstrap
    filesystem = s3_filesystem(
        settings.s3_endpoint,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        settings.s3_region,
    )
    files, settlements = ShardBucket(filesystem, settings.data_bucket), Settlements(database)
    settle = Settle(pipelines, settlements, files, settings.max_record_bytes)
    return _Adapters(
        database,
        files,
        _repositories(settings, pipelines, filesystem),
        TopicEnds(bootstrap),
        TopicProducer(
            bootstrap,
            [pipeline.record_topic for pipeline in pipelines.values()],
            max_bytes=settings.push_max_bytes,
            timeout_seconds=settings.push_timeout_seconds,
        ),
        DatasetWriter(
            bootstrap, pipelines, settlements, settle, _limits(settings), settings.instance
        ),
    )


def _use_cases(
    settings: IngestSettings, pipelines: _Pipelines, adapters: _Adapters
) -> tuple[UseCases, Chores]:
    """What callers ask for, and what is done besides."""
    database, files, work = adapters.database, adapters.files, _work(settings)
    settlements, versions = Settlements(database), Versions(database)
    requests, letters, upkeep = Requests(database), LetterStore(database), Upkeep(database)
    cut = _cut(settings, pipelines, adapters)
    push = Push(pipelines, adapters.producer, requests, settings.max_record_bytes)
    dead_letters = DeadLetters(
        letters,
        files,
        work,
        settings.max_record_bytes,
        lambda: settlements.backlog(settings.outbox_limit),
    )
    chores = Chores(
        CompactShards(
            upkeep,
            files,
            work,
            small_rows=max(1, settings.shard_rows // settings.compact_shards),
            shards=settings.compact_shards,
        ),
        Reclaim(upkeep, files, settings.reclaim_objects),
        SweepOrphans(upkeep, files),
        requests,
        dead_letters,
    )
    erase = EraseRecords(
        versions=versions,
        erasures=Erasures(database),
        repositories=adapters.repositories,
        cut=cut,
        reclaim=chores.reclaim,
        letters=EraseLetters(letters, files, work),
        folder=work,
    )
    limits = StreamLimits(
        settings.stream_max_bytes, settings.push_timeout_seconds, settings.stream_idle_seconds
    )
    use_cases = UseCases(
        push,
        RecordStream(push, limits),
        cut,
        ReleaseVersion(versions, Quarantine(database), adapters.repositories),
        erase,
        PipelineStats(settlements, adapters.ends),
        dead_letters,
    )
    return use_cases, chores


def _cut(settings: IngestSettings, pipelines: _Pipelines, adapters: _Adapters) -> CutVersion:
    database = adapters.database
    leases = Leases(database, "cut_leases")
    return CutVersion(
        pipelines,
        cuts=Cuts(database, leases),
        versions=Versions(database),
        files=adapters.files,
        repositories=adapters.repositories,
        catch_up=CatchUp(Settlements(database), adapters.ends, adapters.writer),
        turns=Turns(
            pipelines,
            leases,
            holder=settings.instance,
            lasts=timedelta(seconds=settings.cut_lease_seconds),
            # Streams may hold half of the gRPC workers; with callers that wait for a version, a quarter stays free.
            callers=max(1, settings.grpc_workers // 4),
        ),
        limits=BuildLimits(
            _work(settings),
            settings.cut_memory_bytes,
            settings.cut_threads,
            settings.part_rows,
            settings.compact_parts,
        ),
    )


def _grpc(
    settings: IngestSettings, pipelines: _Pipelines, adapters: _Adapters, use_cases: UseCases
) -> GrpcServer:
    servicer = IngestServicer(
        pipelines,
        use_cases,
        versions=Versions(adapters.database),
        repositories=adapters.repositories,
        deadline_seconds=settings.call_deadline_seconds,
    )
    return GrpcServer(
        settings,
        [SERVICE],
        [lambda server: ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicer, server)],
    )


def _components(
    settings: IngestSettings,
    pipelines: _Pipelines,
    adapters: _Adapters,
    cut: CutVersion,
    chores: Chores,
) -> list[Component]:
    """What runs behind the door, in the order of start."""
    database, bootstrap = adapters.database, settings.kafka_bootstrap
    topics = {
        topic: pipeline.partitions
        for pipeline in pipelines.values()
        for topic in (pipeline.record_topic, pipeline.dead_letter_topic)
    }
    scheduler = Scheduler(
        pipelines,
        cuts=Cuts(database, Leases(database, "cut_leases")),
        versions=Versions(database),
        cut=cut,
        chores=chores,
        retention=Retention(
            replaced=timedelta(days=settings.shard_retention_days),
            orphans=timedelta(hours=settings.orphan_grace_hours),
            requests=timedelta(days=settings.request_retention_days),
            dead_letters=timedelta(days=settings.dead_letter_retention_days),
        ),
        seconds=settings.schedule_seconds,
    )
    return [
        MetricsServer(settings.metrics_address),
        Topics(bootstrap, topics),
        adapters.producer,
        OutboxRelay(database, bootstrap),
        adapters.writer,
        scheduler,
    ]


def _work(settings: IngestSettings) -> Path:
    """Folder for what only this process works on."""
    return settings.data_dir / f"work-{quote(settings.instance, safe='')}"


def clear_work(folder: Path) -> None:
    """Deletes what a process that was killed has left; the index of record ids stays."""
    for left in folder.glob("*"):
        if left.name != INDEX:
            shutil.rmtree(left)


def _repositories(
    settings: IngestSettings, pipelines: dict[str, Pipeline], filesystem: fs.FileSystem
) -> dict[str, DataRepository]:
    """Where each pipeline's versions are kept: those of DVC in one repository, those of Git LFS in one for each."""
    repositories: dict[str, DataRepository] = {
        name: LfsRepository(settings.data_dir / "lfs" / f"{name}.git", settings.lfs_max_bytes)
        for name, pipeline in pipelines.items()
        if pipeline.versioning == "git-lfs"
    }
    others = pipelines.keys() - repositories.keys()
    if others:
        dvc = DvcRepository(
            settings.data_dir / "datasets",
            f"s3://{settings.dvc_bucket}/dvc",
            {"endpointurl": settings.s3_endpoint, "region": settings.s3_region},
            _credentials(settings),
            filesystem,
        )
        repositories |= dict.fromkeys(others, dvc)
    return repositories


def _credentials(settings: IngestSettings) -> dict[str, str]:
    if not settings.s3_access_key:
        return {}  # the ambient ones
    return {
        "access_key_id": settings.s3_access_key,
        "secret_access_key": settings.s3_secret_key.get_secret_value(),
    }


def _limits(settings: IngestSettings) -> Limits:
    return Limits(
        shard_rows=settings.shard_rows,
        shard_bytes=settings.shard_bytes,
        shard_age_seconds=settings.shard_age_seconds,
        batch_bytes=settings.batch_bytes,
        buffer_rows=settings.buffer_rows,
        buffer_bytes=settings.buffer_bytes,
        backlog=settings.outbox_limit,
        workers=settings.settle_workers,
    )
