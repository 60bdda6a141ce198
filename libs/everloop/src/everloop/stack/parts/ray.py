"""Ray: one local head that the trainer and inference join."""

from __future__ import annotations

import os
import sys

from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import NotReady, Part, Progress
from everloop.stack.probes import listens

__all__ = ["part"]

OBJECT_STORE_BYTES = 512 * 1024 * 1024


def part(home: Home, endpoints: Endpoints) -> Part:
    """Describe the head. Healthy means that its node has registered, not only that a port is open."""
    ports = endpoints.ports
    ready = home.run / "ray.ready"

    def prepare(progress: Progress) -> None:
        (home.data("ray") / "spill").mkdir(parents=True, exist_ok=True)

    def probe() -> None:
        listens(endpoints.ray_address)
        listens(f"127.0.0.1:{ports['ray_node_manager']}")
        if not ready.exists():
            raise NotReady("the node has not registered yet")

    return Part(
        name="ray",
        command=(
            sys.executable,
            "-m",
            "everloop.stack.ray_head",
            f"--home={home.root}",
            f"--temp={home.run / 'ray'}",
            f"--spill={home.data('ray') / 'spill'}",
            f"--ready={ready}",
            # Replicas and trials share the machine and mostly wait: fewer than four slots would let a training
            # block serving on a small machine.
            f"--cpus={max(4, os.cpu_count() or 1)}",
            f"--object-store-bytes={OBJECT_STORE_BYTES}",
            f"--gcs={ports['ray']}",
            f"--object-manager={ports['ray_object_manager']}",
            f"--node-manager={ports['ray_node_manager']}",
            f"--agent={ports['ray_agent']}",
            f"--agent-grpc={ports['ray_agent_grpc']}",
            f"--runtime-env={ports['ray_runtime_env']}",
            f"--metrics={ports['ray_metrics']}",
        ),
        environment={
            # Ray renames its workers, by default over their environment, where the stack's mark is.
            "SPT_NOENV": "1",
            # Ray makes its workers nicer than everything else by default, and with them the replicas, which answer
            # callers. Trials of a training, which can wait, step back by themselves.
            "RAY_worker_niceness": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
        },
        endpoint=endpoints.ray_address,
        probe=probe,
        prepare=prepare,
        deadline_seconds=180,
        stop_seconds=15,
    )
