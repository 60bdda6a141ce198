"""`everloop audit`, as a person types it, against fakes of the services."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everloop.cli import app, output
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb

MODEL = "flight-delays"


@pytest.fixture
def run(addresses, tmp_path: Path, monkeypatch):
    """Runs `everloop audit` with a home whose stack is the fakes, on a wide screen."""
    monkeypatch.setattr(output.console, "width", 250)
    stack = dataclasses.asdict(addresses) | {"pipelines_dir": ""}
    del stack["home"]
    (tmp_path / "stack.json").write_text(json.dumps(stack))

    def invoke(*arguments: str):
        home = ["--home", str(tmp_path), "audit"]
        return CliRunner().invoke(app, [*home, *arguments], env={"TERM": "xterm"})

    return invoke


def test_the_trail_says_who_did_what_and_why(run, fake):
    fake.entries = [
        pb.AuditEntry(id=4, model=MODEL, version=2, action="promoted", actor="ada", reason="[new]"),
        pb.AuditEntry(id=3, model="other", version=1, action="staged"),
    ]
    done = run("list", MODEL)
    assert done.exit_code == 0, done.output
    for text in ("4", "v2", "promoted", "ada", "[new]"):
        assert text in done.output.splitlines()[1]
    assert "other" not in done.output
    assert [entry["id"] for entry in json.loads(run("list", "--json").stdout)] == [4, 3]


def test_a_trail_that_fits_gives_its_head_to_keep(run, fake):
    fake.verified = pb.VerifyAuditResponse(intact=True, entries=9, head="ab" * 32)
    done = run("verify", "--head", "cd" * 32)
    assert done.exit_code == 0, done.output
    assert "9 entries, each as it was written" in done.output
    assert "ab" * 32 in done.output
    assert fake.noted_heads == ["cd" * 32]


def test_a_trail_that_was_changed_names_its_first_entry_and_exits_with_1(run, fake):
    fake.verified = pb.VerifyAuditResponse(entries=3, broken_entry=4, problem="it is gone")
    done = run("verify")
    assert done.exit_code == 1
    assert "entry 4: it is gone; 3 entries before fit" in done.output
    done = run("verify", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["broken_entry"] == 4


def test_a_trail_that_was_cut_off_names_no_entry(run, fake):
    fake.verified = pb.VerifyAuditResponse(entries=3, problem="the chain was cut off")
    assert run("verify").output.startswith("the chain was cut off; 3 entries")
