"""MonitoringService over a real gRPC server."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import grpc
import pytest

from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2, monitoring_pb2_grpc
from everloop_monitor.app import grpc_server
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetectors
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_monitor.settings import MonitorSettings
from everloop_monitor.warn import Lookout
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Stopper

NOW = datetime(2013, 5, 1, tzinfo=UTC)


@pytest.fixture
def service(database, pipeline, make_batch, tmp_path):
    """A client of a monitor that has seen four chunks of version 1, the last two bad, and one of version 2."""
    for version, chunks in ((2, [0.9]), (1, [0.9, 0.9, 0.5, 0.5])):
        watch_version(database, f"promoted-{version}", "trips", version, "run", NOW)
        for number, score in enumerate(chunks):
            first = version * 1000 + number * 100
            batch = make_batch(first, 100, score=score, x=0.9, version=version)
            log_predictions(database, f"logged-{version}-{number}", batch, 100, NOW)
    records = [f"r{n}" for n in range(1000, 1350)]
    record_actuals(database, "actuals", "trips", records, ["false"] * 350, NOW)
    evaluator = Evaluator(
        database, {"trips": pipeline}, FakeDetectors(), retry_seconds=1, now=lambda: NOW
    )
    while evaluator.step():
        pass
    record_actuals(database, "rest", "trips", ["elsewhere"], ["false"], NOW)
    while evaluator.step():
        pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = MonitorSettings(
        data_dir=tmp_path, grpc_address=address, drain_seconds=0, grpc_workers=2, watchers=3
    )
    server = grpc_server(settings, database, {"trips": pipeline})
    server.start(Stopper())
    with channel(address) as client:
        yield monitoring_pb2_grpc.MonitoringServiceStub(client)
    server.stop()


def test_alerts_come_with_their_numbers(service):
    answer = ask(service.ListAlerts, monitoring_pb2.ListAlertsRequest(pipeline="trips"))
    assert [a.chunk_id for a in answer.alerts][-1] == "trips/2/0"
    newest = answer.alerts[0]
    assert list(newest.conditions) == ["drift", "estimated_performance", "realised_performance"]
    assert list(newest.shown) == [
        "100% of the features drifted (x 0.900)",
        "roc_auc 0.5000 < 0.6000",
        "roc_auc 0.5000 < 0.6000",
    ]
    first = monitoring_pb2.ListAlertsRequest(page_size=2)
    page = ask(service.ListAlerts, first)
    first.page_token = page.next_page_token
    assert [a.chunk_id for a in (*page.alerts, *ask(service.ListAlerts, first).alerts)] == [
        a.chunk_id for a in answer.alerts[:4]
    ]


def test_decisions_and_warnings_are_watched_as_they_are_made(
    service, database, pipeline, make_batch
):
    stream = service.Watch(monitoring_pb2.WatchRequest(pipeline="trips"), timeout=20)
    stream.initial_metadata()  # from here on nothing is missed
    batch = make_batch(5_000, 250, score=0.5, x=0.9)
    log_predictions(database, "later", batch, 1_000, NOW)
    pipelines = {"trips": pipeline}
    Lookout(database, pipelines, FakeDetectors()).look()
    warned = next(stream).early_warning
    assert (warned.chunk_id, warned.feature, warned.rows) == ("trips/1/4", "x", 250)
    log_predictions(database, "full", make_batch(5_250, 750), 1_000, NOW)
    evaluator = Evaluator(database, pipelines, FakeDetectors(), retry_seconds=1, now=lambda: NOW)
    while evaluator.step():
        pass
    watched = next(stream)
    assert watched.decision.chunk_id == watched.chunk.id == "trips/1/4"
    assert watched.decision.action
    stream.cancel()
    listed = ask(service.ListEarlyWarnings, monitoring_pb2.ListEarlyWarningsRequest())
    assert [one.feature for one in listed.early_warnings] == ["x"]


def test_who_watches_holds_up_nobody_and_more_than_may_are_refused(service):
    request = monitoring_pb2.WatchRequest(pipeline="trips")
    watching = [service.Watch(request, timeout=20) for _ in range(3)]
    for stream in watching:
        stream.initial_metadata()
    with pytest.raises(grpc.RpcError) as refused:
        next(service.Watch(request, timeout=20))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    ask(service.ListAlerts, monitoring_pb2.ListAlertsRequest(pipeline="trips"))
    for stream in watching:
        stream.cancel()


def ask(method, request):
    return call(method, request, timeout=10)


def test_chunks_come_newest_first_and_by_version(service):
    answer = ask(service.ListChunks, monitoring_pb2.ListChunksRequest(pipeline="trips"))
    assert [c.id for c in answer.chunks] == [
        "trips/1/3",
        "trips/1/2",
        "trips/1/1",
        "trips/1/0",
        "trips/2/0",
    ]
    newest = answer.chunks[0]
    assert newest.alert
    assert newest.labelled_rows == 50
    assert newest.realised_performance.measure == "roc_auc"
    assert newest.realised_performance.value == pytest.approx(0.5)
    assert newest.realised_performance.lower == pytest.approx(0.6)
    assert not newest.realised_performance.HasField("upper")
    assert newest.features[0].measurement.upper == pytest.approx(0.5)
    answer = ask(
        service.ListChunks, monitoring_pb2.ListChunksRequest(pipeline="trips", model_version=2)
    )
    assert [c.id for c in answer.chunks] == ["trips/2/0"]
    assert not answer.chunks[0].HasField("realised_performance")


@pytest.mark.parametrize(
    ("method", "request_type", "field", "count"),
    [
        ("ListChunks", monitoring_pb2.ListChunksRequest, "chunks", 5),
        ("ListDecisions", monitoring_pb2.ListDecisionsRequest, "decisions", 9),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_pages_hold_everything_once(service, method, request_type, field, count, size):
    ids, token = [], ""
    while True:
        answer = ask(
            getattr(service, method),
            request_type(pipeline="trips", page_size=size, page_token=token),
        )
        page = getattr(answer, field)
        assert 0 < len(page) <= size
        ids += [item.id for item in page]
        token = answer.next_page_token
        if not token:
            break
    assert len(ids) == len(set(ids)) == count


def test_decisions_say_why(service):
    answer = ask(service.ListDecisions, monitoring_pb2.ListDecisionsRequest(pipeline="trips"))
    newest = answer.decisions[0]
    assert (newest.action, newest.chunk_id, newest.model_version) == ("retrain", "trips/1/3", 1)
    assert "roc_auc 0.5000 < 0.6000" in newest.reason
    assert newest.time.ToDatetime(UTC) == NOW


def test_a_prediction_is_found_with_the_label_that_came(service):
    answer = ask(
        service.GetPrediction,
        monitoring_pb2.GetPredictionRequest(prediction_id="00000000000000aa-3e9"),
    )
    assert (answer.record_id, answer.label, answer.actual) == ("r1001", "true", "false")
    assert (answer.pipeline, answer.model_version) == ("trips", 1)
    assert (answer.event_id, answer.score) == ("logged-1-0", 0.9)
    assert answer.time.ToDatetime(UTC) == datetime(1970, 1, 1, 0, 16, 41, tzinfo=UTC)


@pytest.mark.parametrize("number", [1000, 1099, 1399, 2000, 2099])
def test_the_first_and_the_last_of_a_batch_are_found(service, number):
    request = monitoring_pb2.GetPredictionRequest(prediction_id=f"00000000000000aa-{number:x}")
    assert ask(service.GetPrediction, request).record_id == f"r{number}"


@pytest.mark.parametrize(
    ("method", "request_", "kind", "reason"),
    [
        (
            "GetPrediction",
            monitoring_pb2.GetPredictionRequest(prediction_id="00000000000000aa-0"),
            Kind.NOT_FOUND,
            "PREDICTION_NOT_FOUND",
        ),
        (
            "GetPrediction",
            monitoring_pb2.GetPredictionRequest(prediction_id="nonsense"),
            Kind.NOT_FOUND,
            "PREDICTION_NOT_FOUND",
        ),
        ("GetPrediction", monitoring_pb2.GetPredictionRequest(), Kind.INVALID, "MISSING_FIELD"),
        (
            "ListChunks",
            monitoring_pb2.ListChunksRequest(pipeline="other"),
            Kind.NOT_FOUND,
            "PIPELINE_NOT_FOUND",
        ),
        (
            "ListChunks",
            monitoring_pb2.ListChunksRequest(page_token="x"),
            Kind.INVALID,
            "INVALID_PAGE",
        ),
        (
            "ListDecisions",
            monitoring_pb2.ListDecisionsRequest(page_size=-1),
            Kind.INVALID,
            "INVALID_PAGE",
        ),
    ],
)
def test_what_is_wrong_has_a_reason(service, method, request_, kind, reason):
    with pytest.raises(EverloopError) as caught:
        ask(getattr(service, method), request_)
    assert (caught.value.kind, caught.value.reason) == (kind, reason)
