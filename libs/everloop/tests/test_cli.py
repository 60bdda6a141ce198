"""The command, as a person types it, against fakes of the services."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import math
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

from everloop.addresses import repository_root
from everloop.cli import app, output
from everloop.cli.output import sparkline
from everloop.stack import endpoints
from everloop.stack.credentials import Credentials
from everloop.stack.home import Home
from everloop.stack.ports import DEFAULTS
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.everloop.training.v1 import training_pb2

MODEL = "flight-delays"
PIPELINES = repository_root() / "pipelines"


@pytest.fixture
def run(addresses, tmp_path: Path, monkeypatch):
    """Runs `everloop` with a home whose stack is the fakes, on a wide screen."""
    monkeypatch.setattr(output.console, "width", 250)
    stack = {
        key: value
        for key, value in dataclasses.asdict(addresses).items()
        if key not in ("home", "pipelines_dir")
    } | {"pipelines_dir": str(PIPELINES)}
    (tmp_path / "stack.json").write_text(json.dumps(stack))

    def invoke(*arguments: str):
        return CliRunner().invoke(app, ["--home", str(tmp_path), *arguments], env={"TERM": "xterm"})

    return invoke


def test_help_teaches_without_waiting_for_anything_heavy():
    script = (
        "import sys; from everloop.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'grpc', 'pandas', 'httpx', 'numpy', 'kafka', 'mlflow', 'psutil', 'pydantic'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "everloop push flights.csv -p flight-delays" in done.stdout


def test_push_summarises_what_was_rejected_and_exits_with_1(run, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    broken = [f'{{"flight_id": "{n}", "distance": "far"}}' for n in range(5)]
    file.write_text("\n".join(['{"flight_id": "good"}', *broken, "{"]))
    done = run("push", str(file), "--pipeline", MODEL)
    assert done.exit_code == 1
    assert "1 accepted, 6 rejected" in done.output
    assert "line 2: distance" in done.output
    assert "line 7: not JSON" in done.output
    assert "WRONG_TYPE: 5" in done.output
    assert "distance is not a number" in done.output
    assert "and 2 more" in done.output
    assert done.output.index("WRONG_TYPE") < done.output.index("MALFORMED_JSON")


def test_push_of_good_records_exits_with_0(run, fake, tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("flight_id,distance,late\nUA-1,1400,true\n")
    assert run("push", str(file), "-p", MODEL).exit_code == 0
    assert json.loads(fake.records[0]) == {"flight_id": "UA-1", "distance": 1400.0, "late": True}


def test_push_shows_on_a_terminal_how_far_it_is(run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"flight_id": "{n}"}}\n' for n in range(1234)))
    drawn = Text.from_ansi(run("push", str(file), "-p", MODEL).stderr).plain
    assert "rows.jsonl" in drawn
    assert re.search(r"\b1234/1234\b", drawn)


def test_push_as_json_holds_every_rejection(run, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text("{")
    done = run("push", str(file), "-p", MODEL, "--json")
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert answer["accepted"] == 0
    assert answer["rejected"][0]["reason"] == "MALFORMED_JSON"


@pytest.mark.parametrize("door", [[], ["--http"]])
def test_predict_takes_rows_from_options_and_files(run, tmp_path: Path, door):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"flight_id": "b"}\n\n')
    done = run(
        "predict", MODEL, "--row", '{"flight_id": "a"}', "--file", str(file), "--json", *door
    )
    assert done.exit_code == 0, done.output
    assert [(line["id"], line["label"]) for line in json.loads(done.stdout)] == [
        ("p-a", "true"),
        ("p-b", "true"),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", MODEL, "--row", "{"], "--row 1: not JSON"),
        (["predict", MODEL, "--row", "[]"], "a row is a JSON object"),
        (["predict", MODEL], "there is nothing to predict"),
        (["predict", "nothing", "--row", "{}"], "MODEL_NOT_FOUND"),
        (["trace", "unknown"], "PREDICTION_NOT_FOUND"),
        (["promote", MODEL, "9"], "VERSION_NOT_FOUND"),
        (["push", "missing.csv", "-p", MODEL], "missing.csv"),
        (["push", str(PIPELINES), "-p", MODEL], "UNKNOWN_FORMAT"),
        (["push", __file__, "-p", MODEL], "UNKNOWN_FORMAT"),
        (["push", "{rows}", "-p", "nothing"], "PIPELINE_NOT_FOUND"),
        (["cut", "nothing"], "PIPELINE_NOT_FOUND"),
        (["train", "nothing"], "PIPELINE_NOT_FOUND"),
        (["datasets", "nothing"], "PIPELINE_NOT_FOUND"),
        (["models", "nothing"], "there is no 'nothing'; there are: flight-delays"),
        (["trainings", "nothing"], "there is no 'nothing'; there are: flight-delays"),
        (["rollback", "nothing"], "MODEL_NOT_FOUND"),
        (["drift", "nothing"], "PIPELINE_NOT_FOUND"),
        (["audit", "list", "nothing"], "PIPELINE_NOT_FOUND"),
        (["predict", MODEL, "--file", "missing.jsonl"], "missing.jsonl"),
        (["predict", MODEL, "--file", "{latin}"], "latin.jsonl cannot be read"),
    ],
)
def test_what_fails_is_one_line_without_a_traceback(run, tmp_path, arguments, said):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "latin.jsonl").write_bytes(b'{"city": "W\xf6rgl"}')
    files = {"rows": tmp_path / "rows.jsonl", "latin": tmp_path / "latin.jsonl"}
    places = {f"{{{name}}}": str(file) for name, file in files.items()}
    done = run(*(places.get(argument, argument) for argument in arguments))
    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not done.stdout.strip()
    assert "Traceback" not in done.output


def commands_of(group: Any, path: str = "") -> Iterator[str]:
    """Every command and every group of them, by what a person types."""
    for name, command in sorted(group.commands.items()):
        yield f"{path}{name}"
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{path}{name} ")


COMMANDS = list(commands_of(typer.main.get_command(app)))
NEEDS_NO_STACK = {
    "up", "down", "demo", "check", "token", "rollout", "dead-letters", "features", "audit"
}  # fmt: skip
ARGUMENTS = {
    "erase": [MODEL, "--record-id", "a", "--reason", "asked"],
    "push": [str(PIPELINES / "rows.jsonl"), "-p", MODEL],
    "predict": [MODEL, "--row", "{}"],
    "package": [MODEL],
    "reproduce": [MODEL],
    "promote": [MODEL, "2"],
    "trace": ["p-1"],
    "cut": [MODEL],
    "train": [MODEL],
    "trainings watch": ["training-1"],
    "trainings cancel": ["training-1"],
    "datasets": [MODEL],
    "rollback": [MODEL],
    "approve": [MODEL, "2"],
    "reject": [MODEL, "2"],
    "archive": [MODEL, "2"],
    "drift": [MODEL],
    "decisions": [MODEL],
    "dead-letters list": [MODEL],
    "dead-letters show": [MODEL, "everloop.records.flight-delays/0/5"],
    "dead-letters replay": [MODEL, "--all"],
    "rollout start": [MODEL, "2"],
    "rollout promote": [MODEL],
    "rollout abort": [MODEL],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert f"everloop {command}" in done.output.split("Usage:")[1].partition("\n")[2]


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - NEEDS_NO_STACK))
def test_a_service_that_is_down_is_one_line_and_what_to_do(command, tmp_path, monkeypatch):
    monkeypatch.setattr("everloop.wire._FIRST_PAUSE_SECONDS", 60)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
        names = ("ingest", "trainer", "registry", "monitor", "inference_grpc")
        stack = dict.fromkeys(names, nowhere) | {"inference_http_url": f"http://{nowhere}"}
        (tmp_path / "stack.json").write_text(json.dumps(stack))
        (tmp_path / "rows.jsonl").write_text("{}")
        arguments = [a.replace(str(PIPELINES), str(tmp_path)) for a in ARGUMENTS.get(command, [])]
        done = CliRunner().invoke(app, ["--home", str(tmp_path), *command.split(), *arguments])
    assert done.exit_code == 1
    assert f"the service at {nowhere} does not answer [" in done.stderr
    assert "everloop up" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert "Traceback" not in done.output


def test_a_file_that_breaks_off_says_how_much_of_it_is_in(run, tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("flight_id\n" + "a\n" * 600 + "y" * 200_000 + "\n")
    done = run("push", str(file), "-p", MODEL)
    assert done.exit_code == 1
    assert "the first 500 records" in done.stderr
    assert "rows.csv:602" in done.stderr


def test_without_a_stack_the_command_says_how_to_start_one(tmp_path: Path):
    done = CliRunner().invoke(app, ["--home", str(tmp_path), "models"])
    assert done.exit_code == 1
    assert "everloop up" in done.stderr


def test_models_shows_stage_cause_and_gates(run):
    done = run("models", MODEL)
    assert done.exit_code == 0
    newest = next(line for line in done.output.splitlines() if " v2 " in line)
    assert "production" in newest and "drift" in newest and "✓ metric_floor" in newest


def test_models_that_learned_from_a_dataset_version(run, fake):
    done = run("models", MODEL, "--dataset", "7")
    assert done.exit_code == 0, done.output
    assert fake.asked_datasets == [7]
    assert "MLflow does not answer" not in done.output


def test_models_say_that_mlflow_is_away(run, fake):
    fake.mlflow_away = True
    done = run("models")
    assert done.exit_code == 0, done.output
    assert "MLflow does not answer" in done.output
    assert fake.asked_datasets == [0]


def test_models_as_json_says_enums_and_numbers_plainly(run):
    newest = json.loads(run("models", "--json").stdout)[0]
    assert newest["stage"] == "production"
    assert newest["cause"] == "drift"
    assert newest["version"] == 2
    assert newest["promote_time"] is None
    assert newest["metrics"] == {"roc_auc": 0.7}
    assert newest["gates"][0]["passed"] is True


def test_models_says_why_a_gate_failed_and_null_for_what_is_no_number(run, fake, monkeypatch):
    def failed(version: int) -> registry_pb2.ModelVersion:
        gate = registry_pb2.GateResult(
            gate="metric_floor", passed=False, message="roc_auc is not [a] number"
        )
        return registry_pb2.ModelVersion(
            model=MODEL, version=version, metrics={"roc_auc": math.nan}, gates=[gate]
        )

    monkeypatch.setattr(fake, "model", failed)
    assert "v2 ✗ metric_floor: roc_auc is not [a] number" in run("models", MODEL).output

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    answer = json.loads(run("models", "--json").stdout, parse_constant=refuse)
    assert answer[0]["metrics"] == {"roc_auc": None}


def test_promote_goes_by_the_etag_as_seen_and_names_who_asked(run, fake):
    assert run("promote", MODEL, "1", "-m", "because").exit_code == 0
    request = fake.promoted[0]
    assert (request.version, request.etag, request.reason) == (1, "etag-1", "because")
    assert request.actor and request.request_id


def test_reproduce_hands_the_run_of_a_version_to_the_trainer(run, fake, tmp_path, monkeypatch):
    asked = []

    def trainer(command, env):
        asked.append(command[2:])
        assert env["EVERLOOP_MLFLOW_URI"] == "http://127.0.0.1:15000"
        return subprocess.CompletedProcess(command, 1)

    there = endpoints.plan(
        Home.at(tmp_path),
        dict(DEFAULTS) | {"mlflow": 15000},
        Credentials("k", "s", "t"),
        PIPELINES,
        None,
    )
    monkeypatch.setattr(endpoints, "load", lambda home: there)
    monkeypatch.setattr("everloop.cli.reproduce.subprocess.run", trainer)
    run_id = fake.model(1).run_id
    assert run("reproduce", f"{MODEL}@1", "--no-trials", "--json").exit_code == 1
    assert run("reproduce", "0" * 32, "--tolerance", "0.001").exit_code == 1
    head = ["everloop_trainer", "reproduce"]
    assert asked == [
        [*head, run_id, "--tolerance", "0.0", "--no-trials", "--json"],
        [*head, "0" * 32, "--tolerance", "0.001"],
    ]
    assert "INVALID_VERSION" in run("reproduce", f"{MODEL}@new").stderr
    monkeypatch.setattr("everloop.cli.reproduce.find_spec", lambda name: None)
    assert "TRAINER_NOT_INSTALLED" in run("reproduce", MODEL).stderr


def test_features_tell_the_fields_that_each_is_made_of(run):
    answer = json.loads(run("features", MODEL, "--json").stdout)
    found = {row["feature"]: row for row in answer["features"]}
    assert found["seats_per_mile"]["fields"] == {"plane_seats": "float", "distance": "float"}
    assert found["route"]["fields"] == {"origin": "string", "carrier": "string"}
    assert found["destination_late_rate"]["options"] == {"smoothing": 50.0}
    assert answer["no_input"] == ["flight_id", "late"]
    told = run("features", str(PIPELINES / "flight-delays.yaml")).output
    assert "target_mean" in told and "the target's mean for each value" in told
    assert "there are: flight-delays" in run("features", "nothing").stderr


@pytest.mark.parametrize(
    ("verb", "said"),
    [("approve", "approved and on trial"), ("reject", "rejected"), ("archive", "archived")],
)
def test_a_ruling_goes_by_the_etag_as_seen_and_names_who_ruled(run, fake, verb, said):
    done = run(verb, MODEL, "1", "-m", "because")
    assert done.exit_code == 0, done.output
    assert f"v1 is {said}" in done.output
    request = fake.ruled[0]
    assert type(request).__name__ == f"{verb.capitalize()}ModelVersionRequest"
    assert (request.version, request.etag, request.reason) == (1, "etag-1", "because")
    assert request.actor and request.request_id


def test_rollback_says_what_serves_again(run):
    assert "v1 is in Production again" in run("rollback", MODEL).output


def test_trainings_lists_state_and_best(run):
    done = run("trainings", MODEL)
    assert "succeeded" in done.output and "6/6" in done.output and "0.7100" in done.output


def test_train_shows_each_step_once_until_the_training_has_ended(run, fake):
    fake.away_after = 3  # it goes on with what it was doing
    done = run("train", MODEL, "--request-id", "mine")
    assert done.exit_code == 0, done.output
    assert fake.asked_to_train == ["mine"]
    assert done.stderr.splitlines() == [
        "flight-delays v1: queued, 0 of 6 trials ended",
        "flight-delays v1: running, 3 of 6 trials ended, best 0.7100 (mlp)",
    ]
    assert "succeeded, 6 of 6 trials ended, best 0.7100 (mlp)" in done.stdout
    assert "everloop models flight-delays" in done.stdout


def test_train_without_waiting_returns_what_was_queued(run, fake):
    answer = json.loads(run("train", MODEL, "--no-wait", "--json").stdout)
    assert (answer["id"], answer["state"]) == ("training-1", "queued")


def test_train_that_fails_says_why_and_exits_with_1(run, fake):
    fake.progress = [fake.training(training_pb2.Training.STATE_FAILED, 0)]
    fake.progress[0].error = "one class only [late]"
    done = run("train", MODEL)
    assert done.exit_code == 1
    assert "one class only [late]" in done.stdout


def test_watch_follows_a_training_and_one_that_is_not_there_is_an_error(run):
    done = run("trainings", "watch", "training-1")
    assert done.exit_code == 0, done.output
    assert len(done.stderr.splitlines()) == 2
    assert "succeeded" in done.stdout
    assert "`everloop trainings` lists them" in run("trainings", "watch", "none").stderr


def test_watch_tells_what_serves_whenever_that_changes(run):
    lines = run("models", "watch", MODEL).stdout.splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "nothing is in Production",
        f"{MODEL} v1",
        f"{MODEL} v2",
    ]
    (alone,) = run("models", "watch", "other").stdout.splitlines()
    assert "nothing is in Production" in alone


def test_cancel_says_who_and_why_and_waits_for_the_end(run, fake):
    gone = fake.training(training_pb2.Training.STATE_CANCELLED, 3)
    fake.progress = [fake.progress[1], gone]
    done = run("trainings", "cancel", "training-1", "-m", "wrong data")
    assert done.stdout == "training training-1: cancelled\n"
    [request] = fake.cancelled
    assert (request.id, request.reason) == ("training-1", "wrong data")
    assert request.actor
    assert "running" in run("trainings", "cancel", "training-1", "--no-wait").stdout


@pytest.mark.parametrize(
    ("trained", "min_rows", "said"),
    [
        (False, 20000, "no training follows: the first one waits for 20,000 rows with a label"),
        (False, 100, "the first training follows: `everloop trainings flight-delays`"),
        (True, 20000, "training follows by the pipeline's triggers; `everloop train"),
    ],
)
def test_cut_says_whether_a_training_follows(run, fake, edited, trained, min_rows, said):
    file = edited / f"{MODEL}.yaml"
    file.write_text(file.read_text().replace("min_rows: 20000", f"min_rows: {min_rows}"))
    if not trained:
        fake.trainings = [fake.training(training_pb2.Training.STATE_FAILED, 0)]
    done = run("cut", MODEL)
    assert done.exit_code == 0, done.output
    assert said in done.stdout
    assert "everloop train" in done.stdout


def test_drift_draws_time_from_left_to_right(run):
    done = run("drift", MODEL)
    assert done.exit_code == 0
    assert "█▄▁" in done.output
    assert "··▲" in done.output
    assert "2 of 3 chunks alert" in done.output


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_decisions_come_with_the_chunks_they_rest_on(run, follow):
    done = run("decisions", MODEL, *follow)
    assert done.exit_code == 0
    assert "retrain v1 request request-1" in done.output
    assert "2 of 3 chunks alert" in done.output
    assert "▲ flight-delays/1/2 realised_performance severity 1.67" in done.output
    told = "temperature changed, seen after 120 of 1,500 rows" in " ".join(done.output.split())
    assert told is bool(follow)


def test_trace_is_a_tree_from_prediction_to_git_tag(run):
    output = run("trace", "p-1").output
    order = ["prediction p-1", "model flight-delays v2", "run run-1", "git tag flight-delays/v2"]
    assert [output.index(text) for text in order] == sorted(output.index(text) for text in order)


def test_trace_of_a_shadow_says_that_it_answered_nobody(run):
    assert "answered true (0.8000)" in run("trace", "p-1").output
    assert "answered nobody, its model was on trial: it said true (0.8000)" in (
        run("trace", "shadow").output
    )


def test_datasets_and_cut_show_the_git_tag(run):
    assert "flight-delays/v5" in run("datasets", MODEL).output
    assert "dvc get /data/repo rows --rev flight-delays/v1" in run("cut", MODEL).output


def test_cut_says_how_to_get_what_git_lfs_keeps(run, fake):
    fake.versioning = "git-lfs"
    assert "git clone --branch flight-delays/v1 /data/repo" in run("cut", MODEL).output


def test_a_version_in_quarantine_is_shown_and_released(run, fake):
    fake.quarantined.add(1)
    cut = run("cut", MODEL).output
    assert "in quarantine, not announced: gust: 100% of [all] are null" in cut
    assert "--release 1" in cut
    listed = run("datasets", MODEL).output
    assert "quarantined" in listed
    assert "v1 gust: 100% of [all] are null" in listed
    assert run("datasets", MODEL, "--release", "1").exit_code != 0  # not without a reason
    assert fake.released == []
    done = run("datasets", MODEL, "--release", "1", "--reason", "moved")
    assert "v1 is announced" in done.output
    assert fake.released == [(1, "moved", getpass.getuser())]
    told = run("datasets", MODEL, "--audit").output
    assert ["v1", "released", getpass.getuser(), "moved"] in [
        line.split()[:4] for line in told.splitlines()
    ]
    run("datasets", MODEL, "--release", "1", "--reason", "[all] of them")
    assert "[all] of them" in run("datasets", MODEL, "--audit").output


def test_records_are_erased_by_id_or_by_value(run, fake):
    done = run("erase", MODEL, "--record-id", "a", "--record-id", "b", "--reason", "17")
    assert "flight-delays v3 is without them" in done.output
    run("erase", MODEL, "--where", "customer=c=1", "--reason", "18")
    assert fake.erased == [(["a", "b"], "", ""), ([], "customer", "c=1")]


@pytest.mark.parametrize("where", ["customer", "=c-17", "customer="])
def test_an_erasure_by_half_a_condition_is_refused_before_anything_is_asked(run, fake, where):
    done = run("erase", MODEL, "--where", where, "--reason", "18")
    assert done.exit_code == 1
    assert "is not FIELD=VALUE" in done.stderr
    assert not fake.erased


def test_the_version_is_told(run):
    assert run("--version").stdout == "everloop 0.1.0\n"


def test_status_tells_where_each_pipeline_stands(run):
    lines = json.loads(run("status", "--json").stdout)["pipelines"]
    assert lines == [
        {
            "pipeline": MODEL,
            "dataset": 5,
            "dataset_state": "available",
            "rows": 5000,
            "production": 2,
            "serving": 1,
            "lag": 0,
            "decision": "retrain",
            "reason": "2 of 3 chunks alert",
            "decided": "",
        }
    ]


def test_status_says_of_a_version_without_rows_yet_that_it_is_being_cut(run, fake):
    fake.cutting = {5}
    shown = run("status").output
    assert "v5 (cutting)" in shown and "0 rows" not in shown
    fake.cutting = set()
    assert "v5 (5,000 rows)" in run("status").output


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A pipelines folder, to be edited; the stack of `run` has it from now on."""
    folder = tmp_path / "pipelines"
    shutil.copytree(PIPELINES, folder)
    file = tmp_path / "stack.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pipelines_dir": str(folder)}))
    return folder


def test_status_shows_what_runs_while_a_pipeline_file_is_half_edited(run, edited: Path):
    (edited / f"{MODEL}.yaml").write_text("pipeline: flight-delays\nschema:\n  fields: [\n")
    (edited / "new.yaml").write_text("pipeline: new\n")
    done = run("status")
    assert done.exit_code == 0, done.output
    assert "retrain" in done.output
    told = [line for line in done.output.splitlines() if "cannot be used as it is" in line]
    assert [line.split()[0] for line in told] == [MODEL, "new"]
    assert f"{edited}/new.yaml:1: " in told[1]
    answer = json.loads(run("status", "--json").stdout)
    assert [line["pipeline"] for line in answer["pipelines"]] == [MODEL]
    assert sorted(answer["problems"]) == [MODEL, "new"]


def test_status_lists_every_endpoint(run, tmp_path: Path, monkeypatch):
    place = Home.at(tmp_path)
    there = endpoints.plan(
        place,
        {name: 20000 + number for number, name in enumerate(DEFAULTS)},
        Credentials("key", "secret", "token"),
        PIPELINES,
        None,
    )
    (tmp_path / "stack.json").write_text(json.dumps(dataclasses.asdict(there)))
    monkeypatch.setattr("everloop.stack.health.status", lambda home: [])
    listed = json.loads(run("status", "--json").stdout)["endpoints"]
    assert listed["inference_grpc"] == f"127.0.0.1:{there.ports['inference_grpc']}"
    for service in ("ingest", "trainer", "registry", "monitor", "inference"):
        port = there.ports[f"{service}_metrics"]
        assert listed[f"{service}_metrics"] == f"http://127.0.0.1:{port}/metrics"
    text = run("status").output
    assert all(address in text for address in listed.values())


def test_check_names_file_line_and_field(tmp_path: Path):
    good = PIPELINES / "flight-delays.yaml"
    bad = tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("trials: 6", "trials: none"))
    done = CliRunner().invoke(app, ["check", str(good), str(bad)])
    assert done.exit_code == 1
    assert "flight-delays" in done.stdout
    assert "training.search.trials" in done.stderr
    assert f"{bad}:" in done.stderr


@pytest.fixture
def narrow(monkeypatch) -> io.StringIO:
    """What a terminal of 40 columns shows."""
    shown = io.StringIO()
    screen = Console(file=shown, width=40, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(output, "console", screen)
    return shown


def words(shown: io.StringIO) -> list[str]:
    return [line.rstrip() for line in Text.from_ansi(shown.getvalue()).plain.splitlines()]


def test_a_table_folds_its_widest_column_where_that_is_enough(narrow):
    output.table(("state", "reason"), [("training", "one long reason " * 3)], empty="")
    assert all("training" in line or line.startswith("  ") for line in words(narrow)[1:])
    assert max(map(len, words(narrow))) <= 40


def test_a_table_that_is_far_too_wide_is_a_block_a_row(narrow):
    row = ("training-1", "superseded", "flight-delays/v12", "")
    output.table(("training", "state", "git tag", "error"), [row, row], empty="")
    block = ["training  training-1", "state     superseded", "git tag   flight-delays/v12", ""]
    assert words(narrow) == block * 2


def test_a_table_for_a_file_has_a_line_a_row(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=shown, width=40, highlight=False))
    output.table(("a", "b"), [("x" * 60, "y" * 60)], empty="")
    assert shown.getvalue().splitlines()[1].split() == ["x" * 60, "y" * 60]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([None], ""), ([1.0], "▁"), ([1.0, 2.0, None, 3.0], "▁▄ █"), ([5.0, 5.0], "▁▁")],
)
def test_sparkline(values, drawn):
    assert sparkline(values) == drawn


def test_check_prints_what_a_pipeline_file_may_say(run):
    done = run("check", "--schema")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["properties"]["monitoring"]
    assert "which files?" in run("check").stderr
