"""Clients in Go and JavaScript, and h2spec; built from public registries where they are not installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.inference.tests.conftest import free_port
from services.inference.tests.rpc.conftest import Served

from everloop_inference.fakes import ROW

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

CACHE = Path(__file__).resolve().parents[4] / ".everloop" / "cache" / "clients"
GO = {
    "grpcurl": ("github.com/fullstorydev/grpcurl", "v1.9.4"),
    "ghz": ("github.com/bojand/ghz", "v0.93.0"),
    "h2spec": ("github.com/summerwind/h2spec", "v2.2.1+incompatible"),
}
GRPC_JS = "@grpc/grpc-js@1.14.7"


def go_tool(name: str) -> str:
    """The tool, from the path or built; skips where neither is possible."""
    built = CACHE / name
    if found := shutil.which(name) or (str(built) if built.exists() else None):
        return found
    if not shutil.which("go"):
        pytest.skip(f"{name} is not installed, and neither is Go to build it")
    folder = CACHE / "go" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text("module tools\n\ngo 1.22\n")
    module, version = GO[name]
    package = f"{module}/cmd/{name}"
    # Not `go install`, which some proxies refuse for a module that is older than modules.
    for step in (["get", f"{module}@{version}"], ["get", package], ["build", "-o", built, package]):
        ran = subprocess.run(["go", *step], cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    return str(built)


@pytest.fixture(scope="session")
def node_modules() -> str:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("Node.js is not installed")
    folder = CACHE / "node"
    if not (folder / "node_modules" / "@grpc" / "grpc-js").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", GRPC_JS]
        subprocess.run(install, check=True, cwd=folder, capture_output=True)
    return str(folder)


@pytest.fixture
def predicting(world: Any, kind: str) -> Iterator[str]:
    """Address of a replica that serves the sample model."""
    world.settings = world.settings.model_copy(
        update={"predict_grpc_server": kind, "predict_grpc_address": f"127.0.0.1:{free_port()}"}
    )
    world.publish(1)
    world.replica()
    yield world.settings.predict_grpc_address


def grpcurl(address: str, *arguments: str, data: object = None) -> subprocess.CompletedProcess[str]:
    given = [] if data is None else ["-d", json.dumps(data)]
    command = [go_tool("grpcurl"), "-plaintext", "-max-time", "20", *given, address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_grpcurl_lists_describes_and_predicts(predicting: str) -> None:
    listed = grpcurl(predicting, "list").stdout.split()
    assert {"inference.GRPCInferenceService", "everloop.inference.v1.InferenceService"} <= set(
        listed
    )
    described = grpcurl(predicting, "describe", "inference.GRPCInferenceService.ModelInfer")
    assert "rpc ModelInfer" in described.stdout
    predict = "everloop.inference.v1.InferenceService/Predict"
    answer = grpcurl(predicting, predict, data={"model": "flights", "rows": [ROW, ROW]})
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["predictions"]) == 2
    refused = grpcurl(predicting, predict, data={"model": "ghost", "rows": [ROW]})
    assert "Code: NotFound" in refused.stderr
    assert "MODEL_NOT_FOUND" in refused.stderr
    health = grpcurl(predicting, "grpc.health.v1.Health/Check", data={})
    assert json.loads(health.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize("connections", [1, 10])
def test_ghz_gets_an_answer_to_every_request(predicting: str, connections: int) -> None:
    command = [
        go_tool("ghz"),
        "--insecure",
        *("--call", "everloop.inference.v1.InferenceService.Predict"),
        *("-d", json.dumps({"model": "flights", "rows": [ROW]})),
        *("-n", "3000", "-c", "50", "--connections", str(connections), "-O", "json"),
        predicting,
    ]
    report = json.loads(
        subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    )
    assert report["statusCodeDistribution"] == {"OK": 3000}
    assert report["count"] == 3000


def test_grpc_js_makes_every_kind_of_call(
    served: Served, node_modules: str, until: Callable[..., None]
) -> None:
    script = Path(__file__).with_name("grpc_client.mjs")
    command = ["node", str(script), node_modules, served.address]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen == {
        "echo": "hello",
        "large": 3 << 20,
        "initial": [["plain"], [0, 1, 255]],
        "trailing": [["plain"], [0, 1, 255]],
        "status": [5, "nothing hier: ü", 1],
        "unknown": 12,
        "late": 4,
        "count": 5,
        "total": "[10, 70]",
        "chat": {"answers": ["one", "two", "three"], "code": 0},
        "cancelled": 1,
        "packed": 100_000,
        "parallel": 500,
    }
    until(lambda: served.probe.cancelled == 2)


# What libnghttp2 bears where RFC 7540 asked for an error; RFC 9113 leaves most of it open.
BORNE = {
    ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame"),
    ("http2/5.1", "closed: Sends a HEADERS frame after sending RST_STREAM frame"),
    ("http2/5.1", "closed: Sends a DATA frame"),
    ("http2/5.1", "closed: Sends a HEADERS frame"),
    ("http2/5.1.1", "Sends stream identifier that is numerically smaller than previous"),
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"),
    ("http2/6.3", "Sends a PRIORITY frame with 0x0 stream identifier"),
    # It closes the connection instead of the stream.
    (
        "http2/6.9.1",
        "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 "
        "on a stream",
    ),
}
CASE = re.compile(
    r'<testcase package="([^"]+)" classname="([^"]+)" time="[^"]*">(.*?)</testcase>', re.S
)


@pytest.mark.parametrize("kind", ["native"])
def test_h2spec_finds_nothing_new(served: Served, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    where = ["-h", "127.0.0.1", "-p", str(served.port), "-o", "2", "-j", str(report), "--strict"]
    subprocess.run([go_tool("h2spec"), *where], capture_output=True, timeout=300)
    cases = CASE.findall(report.read_bytes().decode("latin-1"))  # it may hold the noise it sent
    assert len(cases) > 140
    # It asks with GET: our 405 may come before the frame that it wants to see refused.
    early = "DATA Frame (length:20, flags:0x01", "RST_STREAM Frame (length:4, flags:0x00"
    failed = {
        (section, name)
        for section, name, outcome in cases
        if "<error" in outcome and not any(answer in outcome for answer in early)
    }
    assert failed <= BORNE
    assert served.answers()
