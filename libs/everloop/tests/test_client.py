"""The client against fakes of the services, over real gRPC and HTTP."""

from __future__ import annotations

import json
import math
import socket
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from everloop import Addresses, Everloop, EverloopError
from everloop.addresses import find_home
from everloop.stack.home import default_home
from everloop_contracts.artifacts import artifact_sha256, digests

MODEL = "flight-delays"
ROW = {"flight_id": "UA-1", "carrier": "UA", "wind_gust": None}


@pytest.mark.parametrize("http", [False, True])
def test_both_doors_give_the_same_predictions(everloop, http):
    answer = everloop.predict(MODEL, [ROW, {"flight_id": "UA-2"}], http=http)
    assert (answer.model, answer.version) == (MODEL, 1)
    assert [item.id for item in answer.predictions] == ["p-UA-1", "p-UA-2"]
    assert answer.predictions[0].label == "true"
    assert answer.predictions[0].probabilities == (0.25, 0.75)


@pytest.mark.parametrize("http", [False, True])
def test_an_unknown_model_is_one_error_with_its_reason_and_what_to_do(everloop, http):
    with pytest.raises(EverloopError) as caught:
        everloop.predict("nothing", [ROW], http=http)
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert "nothing" in caught.value.message
    assert "everloop models" in caught.value.advice


@pytest.mark.parametrize("http", [False, True])
def test_a_service_that_is_not_there_is_unavailable(http):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    nowhere = f"127.0.0.1:{port}"
    addresses = Addresses(nowhere, nowhere, nowhere, nowhere, f"http://{nowhere}", nowhere)
    with (
        Everloop.connect(addresses=addresses, timeout=5) as client,
        pytest.raises(EverloopError) as caught,
    ):
        client.predict(MODEL, [ROW], http=http)
    assert caught.value.reason == "UNAVAILABLE"
    assert "everloop up" in caught.value.advice


def test_push_keeps_the_order_and_the_position_of_what_was_rejected(everloop, fake):
    records = [
        {"flight_id": "a", "distance": 1.0},
        b'{"flight_id": "b", "distance": "far"}',
        {"flight_id": "c"},
        b"{broken",
    ]
    told: list[int] = []
    pushed = everloop.push(MODEL, records, batch=3, on_batch=told.append)
    assert told == [3, 1]
    assert pushed.accepted == 2
    assert [(item.position, item.reason) for item in pushed.rejected] == [
        (1, "WRONG_TYPE"),
        (3, "MALFORMED_JSON"),
    ]
    assert pushed.rejected[0].field == "distance"
    assert pushed.rejected[1].record == b"{broken"
    assert [json.loads(body)["flight_id"] for body in fake.records[:3]] == ["a", "b", "c"]


def test_a_push_that_finds_nobody_goes_again_under_the_same_id(everloop, fake, monkeypatch):
    monkeypatch.setattr("everloop.wire._FIRST_PAUSE_SECONDS", 0.01)
    fake.away = 2
    pushed = everloop.push(MODEL, [{"flight_id": str(n)} for n in range(4)], batch=2)
    assert pushed.accepted == 4
    assert len(fake.records) == 4
    first, second = fake.pushes[0], fake.pushes[-1]
    assert fake.pushes == [first, first, first, second]
    assert first and second != first


def test_patience_has_an_end_and_only_unavailable_has_patience(everloop, fake):
    fake.away = 1000
    with pytest.raises(EverloopError) as caught:
        everloop.push(MODEL, [{"flight_id": "a"}], patience=0.5)
    assert caught.value.reason == "BROKER_UNAVAILABLE"
    assert 1 < len(fake.pushes) < 5
    with pytest.raises(EverloopError) as caught:
        everloop.push("nothing", [{"flight_id": "a"}], patience=60)
    assert caught.value.reason == "PIPELINE_NOT_FOUND"


def test_records_that_no_call_can_carry_are_rejected_in_their_place(everloop, fake, monkeypatch):
    monkeypatch.setattr("everloop.push.BATCH_BYTES", 100)
    records = [{"flight_id": "a"}, {"flight_id": "b" * 200}, {"flight_id": math.inf}, b"{broken"]
    pushed = everloop.push(MODEL, records)
    assert pushed.accepted == 1
    assert [(item.position, item.reason) for item in pushed.rejected] == [
        (1, "RECORD_TOO_LARGE"),
        (2, "WRONG_TYPE"),
        (3, "MALFORMED_JSON"),
    ]


@pytest.mark.parametrize("http", [False, True])
def test_rows_of_a_table_are_predicted_over_both_doors(everloop, fake, http):
    row = {"flight_id": np.str_("UA-1"), "distance": np.float64(1400), "late": np.bool_(False)}
    assert everloop.predict(MODEL, [row], http=http).predictions[0].id == "p-UA-1"


@pytest.mark.parametrize(
    "body", ["hello", "{}", '{"model": "m", "version": 1, "predictions": [3]}']
)
def test_an_answer_that_is_not_everloop_s_is_said(everloop, body):
    everloop._http.close()
    everloop._http = httpx.Client(
        base_url="http://elsewhere",
        transport=httpx.MockTransport(lambda request: httpx.Response(200, text=body)),
    )
    with pytest.raises(EverloopError, match="http://elsewhere") as caught:
        everloop.predict(MODEL, [ROW], http=True)
    assert caught.value.reason == "UNEXPECTED_ANSWER"


def test_an_address_that_is_none_is_said():
    addresses = Addresses("a:1", "a:1", "a:1", "a:1", "http://a:b", "a:1")
    with pytest.raises(EverloopError) as caught:
        Everloop.connect(addresses=addresses)
    assert caught.value.reason == "INVALID_ADDRESS"


def test_a_missing_number_goes_as_null_and_a_time_as_rfc_3339(everloop, fake):
    everloop.push(MODEL, [{"a": math.nan, "t": datetime(2013, 1, 1, 5, tzinfo=UTC)}])
    assert json.loads(fake.records[0]) == {"a": None, "t": "2013-01-01T05:00:00+00:00"}


def test_a_value_that_no_door_takes_is_an_error_of_the_caller(everloop):
    with pytest.raises(EverloopError) as caught:
        everloop.predict(MODEL, [{"carrier": object()}])
    assert caught.value.reason == "INVALID_ROW"


def test_lists_read_as_many_pages_as_they_need(everloop, fake):
    assert [item.version for item in everloop.datasets(MODEL, limit=5)] == [5, 4, 3, 2, 1]
    assert [item.version for item in everloop.datasets(MODEL, limit=3)] == [5, 4, 3]
    assert fake.page_sizes == [5, 3, 1, 3, 1]


def test_cutting_again_with_the_same_request_id_gives_the_same_version(everloop):
    first = everloop.cut(MODEL, request_id="once")
    assert everloop.cut(MODEL, request_id="once").version == first.version
    assert everloop.cut(MODEL).version == first.version + 1


def test_trace_joins_prediction_lineage_and_dataset(everloop):
    found = everloop.trace("p-1")
    assert found.prediction.record_id == "UA-1"
    assert found.lineage.version.version == found.prediction.model_version == 2
    assert found.dataset.git_tag == f"{MODEL}/v2"


def test_files_are_written_if_they_are_those_that_were_registered(everloop, fake, tmp_path: Path):
    fake.artifacts = [("model.onnx", b"gra"), ("model.onnx", b"ph"), ("model/MLmodel", b"")]
    version = everloop.model(MODEL)
    everloop.download(version, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"graph"
    version.artifact_sha256 = artifact_sha256(digests(tmp_path))
    everloop.download(version, tmp_path)
    fake.artifacts[1] = ("model.onnx", b"PH")
    with pytest.raises(EverloopError) as caught:
        everloop.download(version, tmp_path)
    assert caught.value.reason == "CHECKSUM_MISMATCH"


@pytest.mark.parametrize("path", ["../model.onnx", "/model.onnx", ""])
def test_no_file_is_written_beside_the_folder(everloop, fake, tmp_path: Path, path):
    fake.artifacts = [(path, b"graph")]
    with pytest.raises(ValueError, match="no path below a folder"):
        everloop.download(everloop.model(MODEL), tmp_path / "here")
    assert list(tmp_path.rglob("*.onnx")) == []


def test_the_environment_says_where_a_stack_is_that_is_not_here(tmp_path: Path):
    names = ("INGEST", "TRAINER", "REGISTRY", "MONITOR")
    environment = {f"EVERLOOP_{name}_ADDRESS": f"{name.lower()}:1" for name in names} | {
        "EVERLOOP_INFERENCE_HTTP": "http://inference:2",
        "EVERLOOP_INFERENCE_GRPC": "inference:3",
    }
    found = Addresses.discover(environment=environment)
    assert (found.ingest, found.inference_http_url, found.home) == (
        "ingest:1",
        "http://inference:2",
        None,
    )


def test_a_home_is_found_from_a_folder_below_it(tmp_path: Path, monkeypatch):
    stack = {
        "ingest": "h:1",
        "trainer": "h:2",
        "registry": "h:3",
        "monitor": "h:4",
        "inference_http_url": "http://h:5",
        "inference_grpc": "h:6",
        "pipelines_dir": "/pipelines",
        "s3_secret_key": "not for clients",
    }
    (tmp_path / ".everloop").mkdir()
    (tmp_path / ".everloop" / "stack.json").write_text(json.dumps(stack))
    below = tmp_path / "notebooks" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    found = Addresses.discover(environment={})
    assert (found.trainer, found.pipelines_dir) == ("h:2", "/pipelines")
    assert found.home == tmp_path / ".everloop"


def test_elsewhere_it_is_where_up_starts_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERLOOP_HOME", raising=False)
    assert find_home({}) == default_home()
    assert find_home({"EVERLOOP_HOME": "/there"}) == Path("/there")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_no_stack_or_a_broken_one_is_said_with_its_place(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "stack.json").write_text(content)
    with pytest.raises(EverloopError) as caught:
        Addresses.discover(tmp_path, environment={})
    assert caught.value.reason == "STACK_NOT_FOUND"
    assert str(tmp_path) in caught.value.message
