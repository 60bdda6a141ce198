"""Runs what README.md shows against a stack, as it is written but for the ports."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from everloop import stack
from everloop.stack.ports import DEFAULTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_SECONDS = 60.0
TRACE_SECONDS = 30.0
"""A prediction can be traced once its log has arrived."""

ROW = {
    "flight_id": "UA-1-EWR-2013-07-01T12:00",
    "scheduled_departure": "2013-07-01T12:00:00-04:00",
    "carrier": "UA",
    "origin": "EWR",
    "destination": "IAH",
    "distance": 1400.0,
}


@dataclass(frozen=True)
class Shown:
    """Something that the README shows: `python`, `shell` or `url`, and its text."""

    kind: str
    text: str

    @property
    def name(self) -> str:
        """Its first line."""
        return self.text.partition("\n")[0]


@dataclass(frozen=True)
class Outcome:
    """What came of it: exit code (or HTTP status) 0 for good, what it printed, and how it was run if not as shown."""

    code: int
    output: str
    note: str = ""


def shown() -> list[Shown]:
    """Everything in the README that can be run, in its order; git and make are what brought us here."""
    found: dict[Shown, None] = {}
    for match in re.finditer(
        r"^```(\w+)\n(.*?)^```|`([^`\n]+)`|(http://127\.[^\s`|)]+)", README, re.M | re.S
    ):
        language, block, inline, url = match.groups()
        if language == "python":
            found[Shown("python", block)] = None
        elif language == "bash":
            found.update(dict.fromkeys(Shown("shell", text) for text in _commands(block)))
        elif inline and (re.match(r"(\.venv/bin/)?everloop ", inline)):
            found[Shown("shell", inline)] = None
        elif address := url or (inline if inline and inline.startswith("http://127.") else None):
            found[Shown("url", address)] = None
    return list(found)


def _commands(block: str) -> Iterator[str]:
    if block.startswith(("curl ", "grpcurl ")):
        yield block
        return
    for line in block.splitlines():
        if not line.startswith(("git ", "make")):
            yield line.partition(" # ")[0].strip()


class Reader:
    """Follows the README, one thing after the other, against the stack at `home`."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._folder = folder
        self._ports = stack.load(home).ports
        bin_ = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            "EVERLOOP_HOME": str(home),
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "COLUMNS": "200",
        }
        rows = folder / "flights.jsonl"
        label = {"flight_id": ROW["flight_id"], "late": True}
        rows.write_text(f"{json.dumps(ROW)}\n{json.dumps(label)}\n")
        mine = folder / "mine.yaml"
        shutil.copy(ROOT / "pipelines" / "flight-delays.yaml", mine)
        self._stands_for = {
            "flights.jsonl": str(rows),
            "pipelines/mine.yaml": str(mine),
            "'{…}'": shlex.quote(json.dumps(ROW)),
            ".venv/bin/everloop": "everloop",
        }

    def read(self) -> dict[Shown, Outcome]:
        """Runs everything."""
        return {item: self._run(item) for item in shown()}

    def _run(self, item: Shown) -> Outcome:
        text = self._as_here(item.text)
        if item.kind == "url":
            return _get(text)
        if item.kind == "python":
            return self._process([sys.executable, "-c", text])
        if text.startswith("grpcurl ") and shutil.which("grpcurl") is None:
            return _call_by_reflection(text)
        deadline = time.monotonic() + TRACE_SECONDS
        while True:
            outcome = self._process(["bash", "-c", text])
            late = "PREDICTION_NOT_FOUND" in outcome.output
            if not late or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if found := re.search(r'"prediction_id": ?"([^"]+)"', outcome.output):
            self._stands_for["<prediction-id>"] = found[1]
        return outcome

    def _as_here(self, text: str) -> str:
        for name, here in self._stands_for.items():
            text = text.replace(name, here)
        for name, port in DEFAULTS.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{{{name}}}")
        for name in DEFAULTS:
            text = text.replace(f"{{{name}}}", str(self._ports[name]))
        return text

    def _process(self, command: list[str]) -> Outcome:
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return Outcome(124, (error.stdout or b"").decode(errors="replace"))
        return Outcome(done.returncode, done.stdout.decode(errors="replace"))


def _get(url: str) -> Outcome:
    try:
        answer = httpx.get(url, timeout=COMMAND_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        return Outcome(1, repr(error))
    return Outcome(0 if answer.is_success else answer.status_code, answer.text[:500])


def _call_by_reflection(command: str) -> Outcome:
    """Does what the grpcurl command line says, with the descriptors that the server's reflection gives."""
    arguments = shlex.split(command)
    body = arguments[arguments.index("-d") + 1]
    address, name = arguments[-2:]
    service_name, _, method_name = name.partition("/")
    note = "grpcurl is not installed: called by reflection from Python"
    try:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            method = pool.FindServiceByName(service_name).methods_by_name[method_name]
            call = channel.unary_unary(
                f"/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=message_factory.GetMessageClass(
                    method.output_type
                ).FromString,
            )
            request = json_format.Parse(body, message_factory.GetMessageClass(method.input_type)())
            answer = call(request, timeout=COMMAND_SECONDS)
            return Outcome(0, json_format.MessageToJson(answer), note)
    except (grpc.RpcError, KeyError, json_format.ParseError) as error:
        return Outcome(1, str(error), note)
