"""Choosing a port for everything that listens.

Defaults are taken where they are free, so that an address in a README works. Two stacks may start at the same
moment: a chosen port is claimed in the stack's run folder until the stack is down, under one lock for the machine's
user.
"""

from __future__ import annotations

import json
import os
import random
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from everloop.stack.errors import StackError
from everloop.stack.home import Home, locked

__all__ = ["DEFAULTS", "PUBLIC", "choose", "is_free", "release", "replaced"]

# Both the defaults and what stands in for them lie below the range from which the kernel takes the source ports of
# outgoing connections (from 32768), else a connection of anybody's could hold the port when a part (re)starts.
DEFAULTS: Mapping[str, int] = {
    "kafka": 9092,
    "kafka_controller": 9093,
    "s3": 8333,
    "s3_grpc": 18333,
    "s3_master": 9333,
    "s3_master_grpc": 19333,
    "s3_volume": 8334,
    "s3_volume_grpc": 18334,
    "s3_filer": 8888,
    "s3_filer_grpc": 18888,
    "mlflow": 5000,
    "ray": 6379,
    "ray_object_manager": 6380,
    "ray_node_manager": 6381,
    "ray_agent": 6382,
    "ray_agent_grpc": 6383,
    "ray_runtime_env": 6384,
    "ray_metrics": 6385,
    "ingest": 15051,
    "trainer": 15052,
    "registry": 15053,
    "monitor": 15054,
    "inference": 15055,
    "inference_http": 8080,
    "inference_grpc": 8081,
    "ingest_metrics": 9401,
    "trainer_metrics": 9402,
    "registry_metrics": 9403,
    "monitor_metrics": 9404,
    "inference_metrics": 9405,
    "prometheus": 9090,
}

PUBLIC = ("inference_http", "inference_grpc", "kafka", "ingest", "mlflow", "prometheus")
"""What users speak to; the others are spoken to by parts of the stack."""

_FALLBACK = range(20000, 32000)


def is_free(port: int) -> bool:
    """Say whether nothing listens on `port` of the loopback interface or of all interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(home: Home, defaults: Mapping[str, int] = DEFAULTS) -> dict[str, int]:
    """Choose a free port for every name and claim them for `home` until `release`.

    Raises:
        StackError: No port is left.
    """
    with locked(_lock()):
        taken = _claimed_by_others(home)
        chosen: dict[str, int] = {}
        for name, default in defaults.items():
            for port in (default, *random.sample(_FALLBACK, k=200)):
                if port not in taken and is_free(port):
                    break
            else:
                raise StackError(f"no free port for {name}")
            taken.add(port)
            chosen[name] = port
        _claim(home).write_text(json.dumps({"pid": os.getpid(), "ports": sorted(chosen.values())}))
    return chosen


def replaced(chosen: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return the names whose default was taken: the default and the port that was chosen instead."""
    return {
        name: (DEFAULTS[name], port)
        for name, port in chosen.items()
        if DEFAULTS.get(name, port) != port
    }


def release(home: Home) -> None:
    """Give the claimed ports back."""
    _claim(home).unlink(missing_ok=True)


def _lock() -> Path:
    return Path(tempfile.gettempdir()) / f"everloop-{os.getuid()}.lock"


def _claim(home: Home) -> Path:
    return home.run / "ports.json"


def _claimed_by_others(home: Home) -> set[int]:
    taken: set[int] = set()
    for claim in home.run.parent.glob(f"everloop-{os.getuid()}-*/ports.json"):
        if claim == _claim(home):
            continue
        try:
            content = json.loads(claim.read_text())
        except (OSError, ValueError):
            continue
        # A claim outlives neither the process that made it nor the supervisor that it was made for.
        if any(map(psutil.pid_exists, (content["pid"], _supervisor(claim.parent)))):
            taken.update(content["ports"])
    return taken


def _supervisor(run: Path) -> int:
    try:
        return int((run / "supervisord.pid").read_text())
    except (OSError, ValueError):
        return -1
