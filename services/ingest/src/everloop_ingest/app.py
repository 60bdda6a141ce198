"""Composition root: builds the adapters, starts everything, stops it in reverse."""

from __future__ import annotations

import logging
import shutil
import sys
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
from everloop_ingest.build_parts import INDEX, BuildLimits
from everloop_ingest.cut_version import CutVersion, Turns
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.erase_letters import EraseLetters
from everloop_ingest.erase_records import EraseRecords
from everloop_ingest.evolve import adopt_schemas
from everloop_ingest.keep_small import KeepSmall
from everloop_ingest.ports import DataRepository
from everloop_ingest.push import Push
from everloop_ingest.release_version import ReleaseVersion
from everloop_ingest.schedule import Scheduler
from everloop_ingest.servicer import IngestServicer
from everloop_ingest.settings import IngestSettings
from everloop_ingest.settle import Settle
from everloop_ingest.stream import RecordStream, StreamLimits
from everloop_ingest.sweep_orphans import SweepOrphans
from everloop_ingest.writer import DatasetWriter, Limits
from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.kafka import OutboxRelay, ensure_topics, wait_for_broker
from everloop_runtime.leases import Leases
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.s3 import s3_filesystem
from everloop_runtime.service import Component, Stopper, run

__all__ = ["check_record_sizes", "check_versioning", "clear_work", "run_service"]

SERVICE = "everloop.ingest.v1.IngestService"


class _Topics(Component):
    """Makes the topics before anything uses them, and connects what puts records on them."""

    name = "topics"

    def __init__(self, bootstrap: str, pipelines: dict[str, Pipeline], sink: TopicProducer) -> None:
        self._bootstrap = bootstrap
        self._pipelines = pipelines
        self._sink = sink

    def start(self, stopper: Stopper) -> None:
        """Waits for the broker, then makes what is missing."""
        wait_for_broker(self._bootstrap, stopper)
        if stopper.stopping:
            return
        partitions = {}
        for pipeline in self._pipelines.values():
            partitions[pipeline.record_topic] = pipeline.partitions
            partitions[pipeline.dead_letter_topic] = pipeline.partitions
        ensure_topics(self._bootstrap, partitions)
        self._sink.connect(pipeline.record_topic for pipeline in self._pipelines.values())

    def stop(self) -> None:
        """Sends what is under way."""
        self._sink.close()


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
    database = Database(settings.database_url)
    database.upgrade(Path(__file__).parent / "migrations")
    filesystem = s3_filesystem(
        settings.s3_endpoint,
        settings.s3_access_key,
        settings.s3_secret_key.get_secret_value(),
        settings.s3_region,
    )
    settlements, versions = Settlements(database), Versions(database)
    leases = Leases(database, "cut_leases")
    cuts = Cuts(database, leases)
    try:
        check_record_sizes(pipelines, settings.max_record_bytes)
        adopt_schemas(pipelines, Schemas(database), datetime.now(UTC))
        check_versioning(pipelines, versions)
        repositories = _repositories(settings, pipelines, filesystem)
    except EverloopError as error:
        print(error, file=sys.stderr)
        database.close()
        return 2
    bootstrap = settings.kafka_bootstrap
    files = ShardBucket(filesystem, settings.data_bucket)
    requests = Requests(database)
    ends = TopicEnds(bootstrap)
    sink = TopicProducer(bootstrap, settings.push_max_bytes, settings.push_timeout_seconds)
    settle = Settle(pipelines, settlements, files, settings.max_record_bytes)
    writer = DatasetWriter(
        bootstrap, pipelines, settlements, settle, _limits(settings), settings.instance
    )
    build = BuildLimits(
        settings.data_dir / f"work-{quote(settings.instance, safe='')}",
        settings.cut_memory_bytes,
        settings.cut_threads,
        settings.part_rows,
        settings.compact_parts,
    )
    clear_work(build.folder)
    # Streams may hold half of the gRPC workers; with callers that wait for a version, a quarter stays free.
    turns = Turns(
        settings.instance,
        timedelta(seconds=settings.cut_lease_seconds),
        max(1, settings.grpc_workers // 4),
    )
    cut = CutVersion(
        pipelines,
        cuts,
        leases,
        versions,
        settlements,
        files,
        repositories,
        ends,
        writer,
        build,
        turns,
    )
    push = Push(pipelines, sink, requests, settings.max_record_bytes)
    stream = RecordStream(
        push,
        StreamLimits(
            settings.stream_max_bytes, settings.push_timeout_seconds, settings.stream_idle_seconds
        ),
    )
    upkeep, grace = Upkeep(database), timedelta(hours=settings.orphan_grace_hours)
    keep_small = KeepSmall(
        upkeep,
        files,
        build.folder,
        max(1, settings.shard_rows // settings.compact_shards),
        settings.compact_shards,
        timedelta(days=settings.shard_retention_days),
        settings.reclaim_objects,
    )
    letters = LetterStore(database)
    erase_letters = EraseLetters(letters, files, build.folder)
    dead_letters = DeadLetters(
        letters,
        files,
        build.folder,
        settings.max_record_bytes,
        lambda: settlements.backlog(settings.outbox_limit),
    )
    servicer = IngestServicer(
        pipelines,
        settlements,
        versions,
        push,
        stream,
        cut,
        ReleaseVersion(versions, Quarantine(database), repositories),
        EraseRecords(
            versions, Erasures(database), repositories, cut, keep_small, erase_letters, build.folder
        ),
        dead_letters,
        ends,
        repositories,
        settings.call_deadline_seconds,
    )
    grpc = GrpcServer(
        settings,
        [SERVICE],
        [lambda server: ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicer, server)],
    )
    scheduler = Scheduler(
        pipelines,
        cuts,
        versions,
        requests,
        cut,
        keep_small,
        SweepOrphans(upkeep, files, grace),
        dead_letters,
        settings.schedule_seconds,
        timedelta(days=settings.request_retention_days),
        timedelta(days=settings.dead_letter_retention_days),
        grace,
    )
    components: list[Component] = [
        MetricsServer(settings.metrics_address),
        _Topics(bootstrap, pipelines, sink),
        OutboxRelay(database, bootstrap),
        writer,
        scheduler,
        grpc,
    ]
    status = run(components, on_ready=grpc.ready)
    ends.close()
    database.close()
    return status


def clear_work(folder: Path) -> None:
    """Deletes what a process that was killed has left; the index of record ids stays."""
    for left in folder.glob("*"):
        if left.name != INDEX:
            shutil.rmtree(left)


def check_record_sizes(pipelines: dict[str, Pipeline], most: int) -> None:
    """Returns where no pipeline asks for larger records than the service takes.

    Raises:
        EverloopError: kind precondition, reason RECORD_LIMIT_TOO_LARGE.
    """
    for pipeline in pipelines.values():
        wanted = pipeline.schema_.max_record_bytes or 0
        if wanted > most:
            raise EverloopError(
                Kind.PRECONDITION,
                "RECORD_LIMIT_TOO_LARGE",
                f"{pipeline.name}: schema.max_record_bytes: {wanted} is more than this service takes, {most} "
                "(EVERLOOP_MAX_RECORD_BYTES)",
            )


def check_versioning(pipelines: dict[str, Pipeline], versions: Versions) -> None:
    """Returns where every pipeline's versions are to be kept as those that it has.

    Raises:
        EverloopError: kind precondition, reason VERSIONING_CHANGED.
    """
    for pipeline in pipelines.values():
        newest = versions.newest_published(pipeline.name)
        if newest is None or newest.file is None:
            continue
        kept = "git-lfs" if newest.file.uri.startswith("file://") else "dvc"
        if kept != pipeline.versioning:
            raise EverloopError(
                Kind.PRECONDITION,
                "VERSIONING_CHANGED",
                f"{pipeline.name}: versioning: {pipeline.versioning}, but its versions are kept by {kept}; leave it at "
                "that, or give the pipeline another name",
            )


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
