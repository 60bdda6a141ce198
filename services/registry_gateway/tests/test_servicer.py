"""The service as its callers see it: over gRPC, with statuses and reasons."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2_grpc
from everloop_registry_gateway.servicer import RegistryServicer
from everloop_registry_gateway.settings import RegistrySettings
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper


@pytest.fixture
def stub(world, tmp_path):
    address = f"unix:{tmp_path / 'registry.sock'}"
    servicer = RegistryServicer(
        world.database,
        world.promoter,
        world.approvals,
        world.rollouts,
        world.observer,
        world.artifacts,
        world.watch,
    )
    server = GrpcServer(
        RegistrySettings(grpc_address=address, drain_seconds=0),
        ["everloop.registry.v1.RegistryService"],
        [lambda server: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)],
    )
    server.start(Stopper())
    with channel(address) as connection:
        raw = registry_pb2_grpc.RegistryServiceStub(connection)
        yield SimpleNamespace(
            **{
                name: lambda request, name=name: call(getattr(raw, name), request, timeout=10)
                for name in vars(raw)
            }
        )
    server.stop()


def failure(action) -> EverloopError:
    with pytest.raises(EverloopError) as caught:
        action()
    return caught.value


def test_a_version_is_shown_whole(world, stub):
    world.register(1)
    version = stub.GetModelVersion(pb.GetModelVersionRequest(model="late")).version
    assert (version.model, version.version, version.stage) == ("late", 1, pb.STAGE_PRODUCTION)
    assert version.metrics == {"roc_auc": 0.701}
    assert [gate.passed for gate in version.gates] == [True] * 3
    assert (version.dataset_tag, version.training_id) == ("late/v1", "training-1")
    assert version.create_time.seconds <= version.promote_time.seconds
    assert version.etag == world.etag()
    assert version.cause == 3  # CAUSE_DRIFT


def test_pages_cover_everything_once_newest_first(world, stub):
    for number in range(1, 8):
        world.register(number)
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = stub.ListModelVersions(
            pb.ListModelVersionsRequest(model="late", page_size=3, page_token=token)
        )
        seen += [version.version for version in page.versions]
        token, pages = page.next_page_token, pages + 1
    assert (seen, pages) == ([7, 6, 5, 4, 3, 2, 1], 3)

    entries, token = [], "first"
    while token:
        page = stub.ListAuditEntries(
            pb.ListAuditEntriesRequest(
                model="late", page_size=4, page_token=token.replace("first", "")
            )
        )
        entries += [entry.id for entry in page.entries]
        token = page.next_page_token
    assert entries == sorted(entries, reverse=True)
    assert len(entries) == len(world.trail())


def test_a_dataset_version_leads_to_every_model_that_learned_from_it(world, stub):
    for number, dataset in ((1, 4), (2, 5), (3, 4), (4, 44), (5, 4)):
        rejected = {"metrics": {"roc_auc": 0.1}} if number == 3 else {}
        world.register(number, dataset_version=dataset, dataset_tag=f"late/v{dataset}", **rejected)
    seen, token = [], "first"
    while token:
        page = stub.ListModelVersions(
            pb.ListModelVersionsRequest(
                model="late",
                dataset_version=4,
                page_size=2,
                page_token=token.replace("first", ""),
            )
        )
        seen += [version.version for version in page.versions]
        token = page.next_page_token
    assert seen == [5, 3, 1]
    lineage = stub.GetLineage(pb.GetLineageRequest(model="late", version=5))
    assert lineage.version.dataset_tag == "late/v4"
    assert not stub.ListModelVersions(
        pb.ListModelVersionsRequest(model="late", dataset_version=9)
    ).versions


@pytest.mark.parametrize("token", ["nonsense", "-1", "9" * 20, "bm9uc2Vuc2U=", "²"])
@pytest.mark.parametrize("method", ["ListModelVersions", "ListAuditEntries", "ListRollouts"])
def test_a_page_token_that_was_not_given_out_is_refused(world, stub, method, token):
    world.register(1)
    request = getattr(pb, f"{method}Request")(page_token=token)
    error = failure(lambda: getattr(stub, method)(request))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_PAGE")
    assert error.metadata == {"field": "page_token"}


@pytest.mark.parametrize("method", ["ListModelVersions", "ListAuditEntries", "ListRollouts"])
def test_a_page_has_no_negative_size(stub, method):
    error = failure(lambda: getattr(stub, method)(getattr(pb, f"{method}Request")(page_size=-1)))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_PAGE")
    assert error.metadata == {"field": "page_size"}


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("GetModelVersion", pb.GetModelVersionRequest(), "model"),
        ("GetModelVersion", pb.GetModelVersionRequest(model="late", version=-1), "version"),
        ("PromoteModelVersion", pb.PromoteModelVersionRequest(version=1), "model"),
        ("PromoteModelVersion", pb.PromoteModelVersionRequest(model="late"), "version"),
        (
            "PromoteModelVersion",
            pb.PromoteModelVersionRequest(model="late", version=1, request_id="x" * 201),
            "request_id",
        ),
        ("ApproveModelVersion", pb.ApproveModelVersionRequest(version=1), "model"),
        ("ApproveModelVersion", pb.ApproveModelVersionRequest(model="late"), "version"),
        ("RejectModelVersion", pb.RejectModelVersionRequest(model="late", version=-1), "version"),
        (
            "ArchiveModelVersion",
            pb.ArchiveModelVersionRequest(model="late", version=1, request_id="x" * 201),
            "request_id",
        ),
        ("ListModelVersions", pb.ListModelVersionsRequest(dataset_version=2), "model"),
        (
            "ListModelVersions",
            pb.ListModelVersionsRequest(model="late", dataset_version=-1),
            "dataset_version",
        ),
        ("RollbackModel", pb.RollbackModelRequest(), "model"),
        ("GetLineage", pb.GetLineageRequest(), "model"),
        ("StartRollout", pb.StartRolloutRequest(version=1), "model"),
        ("StartRollout", pb.StartRolloutRequest(model="late"), "version"),
        (
            "StartRollout",
            pb.StartRolloutRequest(model="late", version=1, plan=pb.RolloutPlan(percent=5)),
            "plan.strategy",
        ),
        (
            "StartRollout",
            pb.StartRolloutRequest(
                model="late", version=1, plan=pb.RolloutPlan(strategy=pb.ROLLOUT_STRATEGY_CANARY)
            ),
            "plan.percent",
        ),
        ("GetRollout", pb.GetRolloutRequest(), "id"),
        ("EndRollout", pb.EndRolloutRequest(), "id"),
        ("EndRollout", pb.EndRolloutRequest(id="x", request_id="x" * 201), "request_id"),
        ("ReportRollout", pb.ReportRolloutRequest(replica="r"), "id"),
        ("ReportRollout", pb.ReportRolloutRequest(id="x"), "replica"),
        ("ReportRollout", pb.ReportRolloutRequest(id="x", replica="x" * 201), "replica"),
        ("ReportRollout", pb.ReportRolloutRequest(id="x", replica="r", sequence=-1), "sequence"),
        (
            "ReportRollout",
            pb.ReportRolloutRequest(id="x", replica="r", candidate=pb.ArmStats(requests=-1)),
            "candidate",
        ),
        (
            "ReportRollout",
            pb.ReportRolloutRequest(id="x", replica="r", candidate=pb.ArmStats(errors=1)),
            "candidate.errors",
        ),
        (
            "ReportRollout",
            pb.ReportRolloutRequest(
                id="x", replica="r", baseline=pb.ArmStats(latency_counts=[0] * 65)
            ),
            "baseline.latency_counts",
        ),
    ],
)
def test_bad_input_names_its_field(stub, method, request_, field):
    error = failure(lambda: getattr(stub, method)(request_))
    assert (error.kind, error.reason) == (Kind.INVALID, "INVALID_ARGUMENT")
    assert error.metadata == {"field": field}
    assert error.message.startswith(f"{field}: ")


def test_what_is_not_there_is_not_found_with_its_names(world, stub):
    error = failure(lambda: stub.GetModelVersion(pb.GetModelVersionRequest(model="nope")))
    assert (error.kind, error.reason, error.metadata) == (
        Kind.NOT_FOUND,
        "MODEL_NOT_FOUND",
        {"model": "nope"},
    )
    world.register(1, metrics={"roc_auc": 0.1})
    error = failure(lambda: stub.GetModelVersion(pb.GetModelVersionRequest(model="late")))
    assert error.reason == "NOTHING_IN_PRODUCTION"
    error = failure(lambda: stub.GetLineage(pb.GetLineageRequest(model="late", version=4)))
    assert error.metadata == {"model": "late", "version": "4"}
    assert not stub.ListProduction(pb.ListProductionRequest(model="nope")).versions


def test_promotion_and_rollback_answer_with_the_version(world, stub):
    world.use(approval="manual")
    stub_promote = pb.PromoteModelVersionRequest(model="late", version=1, actor="ada")
    world.register(1)
    assert stub.PromoteModelVersion(stub_promote).version.stage == pb.STAGE_PRODUCTION
    world.register(2)
    stub.PromoteModelVersion(pb.PromoteModelVersionRequest(model="late", version=2, actor="ada"))
    back = stub.RollbackModel(
        pb.RollbackModelRequest(model="late", actor="bob", reason="complaints")
    )
    assert (back.version.version, back.version.stage) == (1, pb.STAGE_PRODUCTION)
    newest = stub.ListAuditEntries(pb.ListAuditEntriesRequest(model="late", page_size=1)).entries[0]
    assert (newest.action, newest.actor, newest.reason) == ("rolled_back", "bob", "complaints")


def test_lineage_leads_from_a_version_to_its_cause(world, stub):
    world.register(1)
    world.register(2)
    lineage = stub.GetLineage(pb.GetLineageRequest(model="late", version=1))
    assert (lineage.trained_event_id, lineage.training_cause_id) == ("event-1", "drift-1")
    assert lineage.version.dataset_tag == "late/v1"
    assert [entry.action for entry in lineage.audit] == [
        "registered",
        "staged",
        "promoted",
        "archived",
    ]
    assert lineage.audit[-1].cause_id == "event-2"


def test_a_person_rules_on_versions_by_a_call(world, stub):
    world.use(approval="manual")
    for number in (1, 2, 3):
        world.register(number)
    named = {"model": "late", "actor": "ada", "reason": "reviewed"}
    put_away = stub.ArchiveModelVersion(pb.ArchiveModelVersionRequest(version=1, **named))
    assert put_away.version.stage == pb.STAGE_ARCHIVED
    refused = stub.RejectModelVersion(pb.RejectModelVersionRequest(version=2, **named))
    assert refused.version.stage == pb.STAGE_REJECTED
    assert refused.version.gates[-1].message == "rejected by ada: reviewed"
    asked = pb.ApproveModelVersionRequest(version=3, etag=refused.version.etag, **named)
    assert stub.ApproveModelVersion(asked).version.stage == pb.STAGE_PRODUCTION
    error = failure(lambda: stub.ApproveModelVersion(asked))
    assert (error.kind, error.reason) == (Kind.CONFLICT, "ETAG_MISMATCH")


def test_the_audit_trail_is_verified_by_a_call(world, stub):
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.2})
    found = stub.VerifyAudit(pb.VerifyAuditRequest())
    entries = stub.ListAuditEntries(pb.ListAuditEntriesRequest()).entries
    assert (found.intact, found.entries, found.head) == (True, 5, entries[0].link)
    assert entries[0].evidence[0].evidence == {"value": 0.2, "min": 0.6}
    assert stub.VerifyAudit(pb.VerifyAuditRequest(head=entries[3].link)).intact
    lost = stub.VerifyAudit(pb.VerifyAuditRequest(head="0" * 64))
    assert (lost.intact, lost.broken_entry) == (False, 0)
    assert "does not hold the link" in lost.problem


def test_without_mlflow_reads_answer_and_moves_are_unavailable(world, stub):
    world.register(1)
    world.register(2)
    world.registry.reachable = False
    (version,) = stub.ListProduction(pb.ListProductionRequest()).versions
    assert version.version == 2
    listed = stub.ListModelVersions(pb.ListModelVersionsRequest())
    assert (len(listed.versions), listed.mlflow_away) == (2, True)
    assert stub.GetModelVersion(pb.GetModelVersionRequest(model="late")).mlflow_away
    error = failure(lambda: stub.RollbackModel(pb.RollbackModelRequest(model="late")))
    assert (error.kind, error.reason) == (Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE")
    world.registry.reachable = True
    assert not stub.ListModelVersions(pb.ListModelVersionsRequest()).mlflow_away


def test_a_stale_etag_is_aborted_on_the_wire(world, stub, tmp_path):
    world.register(1)
    with grpc.insecure_channel(f"unix:{tmp_path / 'registry.sock'}") as connection:
        raw = registry_pb2_grpc.RegistryServiceStub(connection)
        with pytest.raises(grpc.RpcError) as caught:
            raw.PromoteModelVersion(
                pb.PromoteModelVersionRequest(model="late", version=1, etag="0"), timeout=10
            )
    assert caught.value.code() is grpc.StatusCode.ABORTED


def test_metrics_count_versions_verdicts_and_promotions(world):
    from prometheus_client import REGISTRY, CollectorRegistry

    from everloop_registry_gateway.metrics import VersionsByStage

    def count(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"model": "late", **labels}) or 0.0

    refused = {"gate": "metric_floor", "verdict": "refused"}
    names = ("everloop_registry_gate_verdicts_total", "everloop_registry_promotions_total")
    before = count(names[0], **refused), count(names[1], move="promotion")
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.2})
    assert count(names[0], **refused) == before[0] + 1
    assert count(names[1], move="promotion") == before[1] + 1

    registry = CollectorRegistry()
    registry.register(VersionsByStage(lambda: world.ask(lambda store: store.count_by_stage())))
    for stage in ("production", "rejected"):
        labels = {"model": "late", "stage": stage}
        assert registry.get_sample_value("everloop_registry_model_versions", labels) == 1


def test_a_rollout_from_its_start_to_its_end(world, stub):
    world.register(1)
    world.use(approval="manual")
    world.register(2)
    plan = pb.RolloutPlan(
        strategy=pb.ROLLOUT_STRATEGY_SHADOW,
        percent=25,
        key="x",
        min_requests=10,
        max_error_rate=0.05,
        max_latency_ratio=3,
        abort_on_performance=True,
    )
    plan.bake.FromSeconds(90)
    start = pb.StartRolloutRequest(
        model="late", version=2, plan=plan, request_id="start", actor="ada", reason="a hunch"
    )
    started = stub.StartRollout(start).rollout
    assert (started.model, started.candidate_version, started.baseline_version) == ("late", 2, 1)
    assert (started.state, started.plan) == (pb.ROLLOUT_STATE_RUNNING, plan)
    assert started.start_time.seconds and not started.HasField("end_time")

    serving = stub.ListProduction(pb.ListProductionRequest(model="late"))
    (version,), (trial,) = serving.versions, serving.trials
    assert (version.version, trial.version.version) == (1, 2)
    assert trial.version.stage == pb.STAGE_STAGING
    assert trial.version.run_id and trial.rollout.plan == plan
    assert not trial.rollout.HasField("candidate") and not trial.rollout.HasField("baseline")

    report = pb.ReportRolloutRequest(
        id=started.id,
        replica="replica-1",
        sequence=1,
        candidate=pb.ArmStats(requests=4, errors=1, rows=9, latency_counts=[0, 3, 1]),
        baseline=pb.ArmStats(requests=40, rows=90, latency_counts=[40]),
    )
    for _ in range(2):
        assert stub.ReportRollout(report).state == pb.ROLLOUT_STATE_RUNNING
    shown = stub.GetRollout(pb.GetRolloutRequest(id=started.id)).rollout
    assert (shown.candidate.requests, shown.candidate.errors, shown.candidate.rows) == (4, 1, 9)
    assert list(shown.candidate.latency_counts) == [0, 3, 1] + [0] * 61
    assert shown.baseline.requests == 40
    assert stub.StartRollout(start).rollout == started
    (listed,) = stub.ListRollouts(pb.ListRolloutsRequest(model="late")).rollouts
    assert listed == shown

    end = pb.EndRolloutRequest(id=started.id, request_id="end", actor="ada", reason="slow")
    ended = stub.EndRollout(end).rollout
    assert (ended.state, ended.reason) == (pb.ROLLOUT_STATE_ABORTED, "aborted by ada: slow")
    assert ended.end_time.seconds and ended.candidate == shown.candidate
    assert stub.EndRollout(end).rollout == ended
    assert stub.ReportRollout(report).state == pb.ROLLOUT_STATE_ABORTED
    assert not stub.ListProduction(pb.ListProductionRequest()).trials
    rejected = stub.GetModelVersion(pb.GetModelVersionRequest(model="late", version=2)).version
    assert (rejected.stage, rejected.gates[-1].gate) == (pb.STAGE_REJECTED, "rollout")
    assert rejected.gates[-1].evidence["requests"] == 4
    error = failure(lambda: stub.EndRollout(pb.EndRolloutRequest(id=started.id, promote=True)))
    assert (error.kind, error.reason) == (Kind.PRECONDITION, "ROLLOUT_ENDED")


def test_a_start_without_a_plan_goes_by_the_pipeline(world, stub):
    world.register(1)
    world.use(approval="manual", rollout={"strategy": "ab", "percent": 40})
    world.register(2)
    rollout = stub.StartRollout(pb.StartRolloutRequest(model="late", version=2)).rollout
    assert (rollout.plan.strategy, rollout.plan.percent) == (pb.ROLLOUT_STRATEGY_AB, 40)
    error = failure(lambda: stub.GetRollout(pb.GetRolloutRequest(id="nothing")))
    assert (error.kind, error.reason) == (Kind.NOT_FOUND, "ROLLOUT_NOT_FOUND")
