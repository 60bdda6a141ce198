"""The chart as Helm renders it, and ways to look at what comes out."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/everloop"
PIPELINE = f"pipelines.flight-delays\\.yaml={ROOT / 'pipelines/flight-delays.yaml'}"
PLACES = ("local", "eks", "existing")

Object = dict[str, Any]


def find_helm() -> str | None:
    """The machine's own, or the one that `make check-deploy` has installed."""
    here = ROOT / ".everloop/cache/deploy-tools/bin"
    return shutil.which("helm", path=f"{os.environ['PATH']}:{here}")


@dataclass(frozen=True)
class Helm:
    program: str

    def __call__(self, *arguments: str | Path) -> str:
        """Raises `CalledProcessError` with what helm says."""
        done = subprocess.run(
            [self.program, *map(str, arguments)], capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise HelmError(done.stderr + done.stdout)
        return done.stdout

    def render(
        self, place: str, *options: str, release: str = "everloop", chart: Path = CHART
    ) -> list[Object]:
        values = ("--values", str(CHART / f"values-{place}.yaml"), "--set-file", PIPELINE)
        text = self(
            "template",
            release,
            chart,
            "--namespace",
            "everloop",
            "--kube-version",
            "1.33.0",
            *values,
            *options,
        )
        return [item for item in yaml.safe_load_all(text) if item]


class HelmError(Exception):
    """Helm refused; the text is its own."""


def of_kind(objects: list[Object], *kinds: str) -> dict[str, Object]:
    """Objects of some kinds by name."""
    return {item["metadata"]["name"]: item for item in objects if item["kind"] in kinds}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template with a name for it, those inside Ray's objects too."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        spec = item.get("spec", {})
        if item["kind"] in ("StatefulSet", "Deployment", "Job"):
            yield name, spec["template"]
        cluster = spec.get("rayClusterConfig", spec)
        for group in (cluster.get("headGroupSpec"), *cluster.get("workerGroupSpecs", ())):
            if group:
                yield f"{name}/{group.get('groupName', 'head')}", group["template"]


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def environment(container: Object) -> dict[str, str]:
    """Variables with values; those from a Secret hold its key in angle brackets, and optional ones are not set."""
    return {
        item["name"]: item["value"]
        if "value" in item
        else "<{}>".format(item["valueFrom"].get("secretKeyRef", {"key": "field"})["key"])
        for item in container["env"]
        if not item.get("valueFrom", {}).get("secretKeyRef", {}).get("optional")
    }
