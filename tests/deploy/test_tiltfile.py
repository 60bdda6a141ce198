"""The Tiltfile, evaluated with Tilt's own functions stood in for, builds what the charts run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import starlark
import yaml
from tests.deploy.chart import ROOT, Helm

BUILT = "docker_build"


@pytest.fixture
def calls(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, Any]]]:
    """What the Tiltfile calls, by function: positional and named arguments."""
    monkeypatch.chdir(ROOT)
    made: dict[str, list[tuple[Any, Any]]] = {}
    module = starlark.Module()

    def told(name: str) -> None:
        def call(*positional: Any, **named: Any) -> Any:
            made.setdefault(name, []).append((positional, named))
            return list(positional)

        module.add_callable(name, call)

    def local(arguments: list[str], quiet: bool) -> str:
        assert arguments[0] == "helm"
        command = [helm.program, *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for name in (BUILT, "fall_back_on", "sync", "run", "k8s_image_json_path", "k8s_resource"):
        told(name)
    for name in ("k8s_yaml", "watch_file"):
        told(name)
    module.add_callable("local", local)
    module.add_callable("k8s_namespace", lambda: "everloop")
    module.add_callable("read_file", lambda path: Path(path).read_text())
    module.add_callable("listdir", lambda path: [str(item) for item in Path(path).iterdir()])
    module.add_callable("basename", os.path.basename)
    dialect = starlark.Dialect.extended()
    dialect.enable_top_level_stmt = True
    source = (ROOT / "Tiltfile").read_text().replace("os.path.basename", "basename")
    ast = starlark.parse("Tiltfile", source, dialect)
    starlark.eval(module, ast, starlark.Globals.standard())
    return made


def test_every_image_of_ours_is_built(calls: dict[str, list[tuple[Any, Any]]]) -> None:
    built = {positional[0] for positional, _ in calls[BUILT]}
    objects = [
        item
        for (text,), _ in calls["k8s_yaml"]
        for item in yaml.safe_load_all(text)
        if item and item["kind"] != "ConfigMap"
    ]
    named = {
        word.partition(":")[0]
        for word in yaml.dump(objects).split()
        if word.startswith("everloop-") and ":0" in word
    }
    assert named == built - {"everloop-base"}
    for _, options in calls[BUILT]:
        assert "dockerfile_contents" in options or (ROOT / options["dockerfile"]).exists()


def test_what_is_saved_goes_where_python_looks_first(
    calls: dict[str, list[tuple[Any, Any]]],
) -> None:
    (base,) = [options for _, options in calls[BUILT] if "dockerfile_contents" in options]
    for (source, target), _ in calls["sync"]:
        assert (ROOT / source).is_dir()
        assert f"ENV PYTHONPATH={target}\n" in base["dockerfile_contents"]


def test_resources_are_those_of_the_charts(calls: dict[str, list[tuple[Any, Any]]]) -> None:
    names = {
        item["metadata"]["name"]
        for (text,), _ in calls["k8s_yaml"]
        for item in yaml.safe_load_all(text)
        if item and item["kind"] in ("StatefulSet", "Deployment", "RayService")
    }
    wanted = {positional[0] for positional, _ in calls["k8s_resource"]}
    wanted |= {
        need for _, options in calls["k8s_resource"] for need in options.get("resource_deps", ())
    }
    assert wanted <= names
