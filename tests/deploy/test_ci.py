"""What continuous integration runs is what people run; actionlint checks the workflows' own language."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.deploy.chart import ROOT

WORKFLOWS = {path.stem: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
JENKINSFILE = (ROOT / "Jenkinsfile").read_text()
EVERYWHERE = {**WORKFLOWS, "Jenkinsfile": JENKINSFILE}
STAGES = re.findall(
    r"stage\('([^']+)'\) \{(.*?)(?=\n        stage\(|\n    post)", JENKINSFILE, re.S
)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_is_called_exists(name: str) -> None:
    text = EVERYWHERE[name]
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    called = [word for line in re.findall(r"\bmake ([a-z -]+)", text) for word in line.split()]
    assert set(called) <= targets
    for path in re.findall(r"(?<![\w./])(?:\.ci|tools)/[\w./]+", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"everloop (train|promote|models) ", text):
        rooms = (ROOT / "libs/everloop/src/everloop/cli").glob("*.py")
        made = re.compile(rf"^(def {command}\(|{command} = typer\.Typer\()", re.M)
        assert any(made.search(room.read_text()) for room in rooms), command


def test_jenkins_does_what_the_workflows_do() -> None:
    assert [name for name, _ in STAGES] == [
        *("Check", "Test", "Check deployment", "Images", "Plan", "Release", "Train", "Approve")
    ]
    stages = dict(STAGES)
    for name in ("Plan", "Release", "Train", "Approve"):
        assert "when {" in stages[name], f"{name} runs at every build"
    assert "input {" in stages["Approve"]
    for name, command in [
        ("Test", "make test"),
        ("Images", "make test-containers"),
        ("Release", "docker push"),
        ("Release", "helm package"),
        ("Plan", "plan -input=false"),
        ("Train", "everloop train"),
        ("Approve", "everloop promote"),
    ]:
        assert command in stages[name]
        words = command.removeprefix("make ")
        assert any(words in text or ".ci/run" in text for text in WORKFLOWS.values())
    assert JENKINSFILE.count("{") == JENKINSFILE.count("}")


def workflow(name: str) -> dict[str, Any]:
    # `on` is a boolean in YAML 1.1
    return {str(key): value for key, value in yaml.safe_load(WORKFLOWS[name]).items()}


def test_what_changes_the_world_asks_first_or_is_asked_for() -> None:
    promote = workflow("promote")
    assert list(promote["True"]) == ["workflow_dispatch"]
    assert promote["jobs"]["promote"]["environment"] == "production"
    assert workflow("release")["True"] == {"push": {"tags": ["v*"]}}
    assert set(workflow("train")["True"]) == {"workflow_dispatch", "repository_dispatch"}
    assert "apply" not in WORKFLOWS["terraform"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_no_more_than_it_needs(name: str) -> None:
    found = workflow(name)
    assert found["permissions"].get("contents") == "read"
    for job in found["jobs"].values():
        for step in job["steps"]:
            # Text of others in a script would run as part of it; in a variable it is text.
            assert "${{" not in step.get("run", ""), step
