"""Alerts fire where they should, each has its runbook, and the dashboards are those of tools/dashboards.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tools import dashboards

from everloop_inference.log.books import Books

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
ALERTS = [
    rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
METRIC = re.compile(r"\beverloop_[a-z_]+")
PARTS = ("_total", "_bucket", "_sum", "_count", "")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool: apt-get install prometheus"
)


@promtool
@pytest.mark.parametrize("command", ["check", "test"])
def test_promtool_accepts_the_rules(command: str) -> None:
    folder = RULES / "tests" if command == "test" else RULES
    files = sorted(map(str, folder.glob("*.yaml")))
    done = subprocess.run(["promtool", command, "rules", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_is_tried_and_has_a_runbook(alert: dict[str, object]) -> None:
    name = str(alert["alert"])
    assert name in (RULES / "tests/alerts.yaml").read_text()
    assert f"\n#### {name}\n" in (ROOT / "docs/operations.md").read_text()
    assert alert["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"  # type: ignore[index]


def test_dashboards_are_those_of_the_tables() -> None:
    assert [
        path.name for path, text in dashboards.wanted().items() if path.read_text() != text
    ] == []


def test_what_is_asked_for_is_what_services_export() -> None:
    sources = [
        path.read_text()
        for folder in ("libs", "services")
        for path in (ROOT / folder).glob("*/src/**/*.py")
    ]
    declared = {name for text in sources for name in re.findall(r'"(everloop_[a-z_]+)"', text)}
    # Books name theirs by what they count.
    declared |= {family.name for family in Books().collect()}
    rules = [path.read_text() for path in RULES.glob("*.yaml")]
    asked = set(METRIC.findall(" ".join([*rules, *dashboards.queries()])))
    recorded = set(re.findall(r":(everloop_[a-z_]+):", " ".join(rules)))
    unknown = {
        name
        for name in asked - recorded
        if not any(name.endswith(part) and name.removesuffix(part) in declared for part in PARTS)
    }
    assert unknown == set()
