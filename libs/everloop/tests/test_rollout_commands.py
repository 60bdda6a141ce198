"""`everloop rollouts` and `everloop rollout`, as a person types them, against fakes of the services."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everloop.cli import app, output
from everloop.client import Everloop
from everloop.errors import EverloopError
from everloop_contracts.latency import BUCKETS
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb

MODEL = "flight-delays"


@pytest.fixture
def run(addresses, tmp_path: Path, monkeypatch):
    """Runs `everloop` with a home whose stack is the fakes, on a wide screen."""
    monkeypatch.setattr(output.console, "width", 250)
    stack = dataclasses.asdict(addresses) | {"pipelines_dir": ""}
    del stack["home"]
    (tmp_path / "stack.json").write_text(json.dumps(stack))

    def invoke(*arguments: str):
        return CliRunner().invoke(app, ["--home", str(tmp_path), *arguments], env={"TERM": "xterm"})

    return invoke


def rollout(state=pb.ROLLOUT_STATE_RUNNING, reason: str = "") -> pb.Rollout:
    found = pb.Rollout(
        id="rollout-1",
        model=MODEL,
        candidate_version=1,
        baseline_version=2,
        plan=pb.RolloutPlan(strategy=pb.ROLLOUT_STRATEGY_CANARY, percent=12.5),
        state=state,
        reason=reason,
        candidate=pb.ArmStats(requests=1200, errors=6, latency_counts=[0, 1200] + [0] * 62),
        baseline=pb.ArmStats(requests=9000, latency_counts=[9000] + [0] * (BUCKETS - 1)),
    )
    found.plan.bake.FromSeconds(1800)
    found.start_time.FromSeconds(1_700_000_000)
    if state != pb.ROLLOUT_STATE_RUNNING:
        found.end_time.FromSeconds(1_700_000_660)
    return found


def test_rollouts_shows_both_versions_side_by_side_and_why_it_ended(run, fake):
    fake.rollouts = [rollout(pb.ROLLOUT_STATE_ABORTED, "errors: 6 of 1200 requests failed [bad]")]
    done = run("rollouts", MODEL)
    assert done.exit_code == 0, done.output
    row = done.output.splitlines()[1]
    for text in (
        "rollout-1",
        "v1 beside v2",
        "canary",
        "12.5 %",
        "aborted",
        "1,200 / 9,000",
        "0.50% / 0.00%",
        "0.0594 / 0.0495",
        "0:11:00 / 0:30:00",
    ):
        assert text in row
    assert f"{MODEL} v1: errors: 6 of 1200 requests failed [bad]" in done.output


def test_a_rollout_that_nobody_asked_has_no_rates(run, fake):
    fake.rollouts = [pb.Rollout(id="r", model=MODEL, candidate_version=1)]
    assert run("rollouts").output.splitlines()[1].count("- / -") == 2


def test_rollouts_as_json(run, fake):
    fake.rollouts = [rollout()]
    (answer,) = json.loads(run("rollouts", "--json").stdout)
    assert (answer["state"], answer["plan"]["strategy"]) == ("running", "canary")
    assert answer["candidate"]["errors"] == 6


def test_without_a_rollout_the_list_says_how_to_begin_one(run):
    assert "everloop rollout start" in run("rollouts", MODEL).output
    assert "there is no 'nothing'" in run("rollouts", "nothing").stderr


def test_models_shows_what_is_on_trial(run, fake):
    assert "on trial" not in run("models").output
    fake.rollouts = [rollout()]
    (row,) = [line for line in run("models").output.splitlines() if "on trial" in line]
    assert " v1 " in row


def test_start_without_options_leaves_the_plan_to_the_pipeline(run, fake):
    done = run("rollout", "start", MODEL, "3", "-m", "a hunch")
    assert done.exit_code == 0, done.output
    (request,) = fake.asked_of_rollouts
    assert (request.model, request.version, request.reason) == (MODEL, 3, "a hunch")
    assert request.actor and request.request_id
    assert not request.HasField("plan")
    assert "v3 is on trial beside v2" in done.output
    assert f"everloop rollouts {MODEL}" in done.output


def test_start_with_options_makes_a_plan_of_defaults_and_options(run, fake):
    options = [
        "--strategy",
        "shadow",
        "--percent",
        "50",
        "--bake",
        "2h",
        "--latency-ratio",
        "0",
        "--no-performance",
    ]
    assert run("rollout", "start", MODEL, "3", *options).exit_code == 0
    plan = fake.asked_of_rollouts[0].plan
    assert (plan.strategy, plan.percent) == (pb.ROLLOUT_STRATEGY_SHADOW, 50)
    assert (plan.bake.seconds, plan.min_requests) == (7200, 1000)
    assert (plan.max_error_rate, plan.max_latency_ratio) == (0.01, 0)
    assert not plan.abort_on_performance


def test_start_takes_the_newest_version_in_staging(run, fake, monkeypatch):
    def staged(version: int) -> pb.ModelVersion:
        stage = pb.STAGE_STAGING if version == 1 else pb.STAGE_PRODUCTION
        return pb.ModelVersion(model=MODEL, version=version, stage=stage)

    assert "no version of flight-delays is in Staging" in run("rollout", "start", MODEL).stderr
    monkeypatch.setattr(fake, "model", staged)
    assert run("rollout", "start", MODEL, "--json").exit_code == 0
    assert fake.asked_of_rollouts[0].version == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--percent", "0"], "--percent: "),
        (["--bake", "soon"], "--bake: "),
        (["--strategy", "blue-green"], "--strategy: "),
        (["--error-rate", "2"], "--error-rate: "),
    ],
)
def test_an_option_that_cannot_be_is_one_line(run, fake, options, said):
    done = run("rollout", "start", MODEL, "3", *options)
    assert done.exit_code == 1
    assert said in done.stderr and "INVALID_OPTION" in done.stderr
    assert fake.asked_of_rollouts == []


@pytest.mark.parametrize(
    ("command", "promotes", "said"),
    [("promote", True, "v1 is in Production"), ("abort", False, "v1 is taken back")],
)
def test_the_trial_that_runs_is_ended(run, fake, command, promotes, said):
    fake.rollouts = [rollout()]
    done = run("rollout", command, MODEL, "-m", "enough")
    assert done.exit_code == 0, done.output
    assert said in done.output
    (request,) = fake.asked_of_rollouts
    assert (request.id, request.promote, request.reason) == ("rollout-1", promotes, "enough")
    assert request.actor and request.request_id


def test_without_a_trial_there_is_nothing_to_end(run, fake):
    fake.rollouts = [rollout(pb.ROLLOUT_STATE_ABORTED)]
    done = run("rollout", "abort", MODEL)
    assert done.exit_code == 1
    assert "no version of flight-delays is on trial" in done.stderr


def test_the_client_reads_one_rollout(addresses, fake):
    fake.rollouts = [rollout()]
    with Everloop(addresses) as everloop:
        assert everloop.rollout("rollout-1") == fake.rollouts[0]
        with pytest.raises(EverloopError, match="no such rollout") as caught:
            everloop.rollout("another")
    assert "everloop rollouts" in caught.value.advice
