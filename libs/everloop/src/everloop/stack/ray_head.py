"""Runs a Ray head node as one process tree that dies and comes back as a whole.

`ray start --head --block` does less than the stack needs: killed with -9 it leaves its servers behind, which then hold
the ports; it replaces 127.0.0.1 by the machine's outward address; and it adds an autoscaler, a client server and an
idle dashboard (200 MB). Ray's own `Node`, which `ray.init` and `ray start` are made of, takes all of this as
parameters, and has the kernel kill its servers with it. It is not public: `everloop` pins Ray's minor version.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from everloop.stack.processes import kill_all, marked

START_SECONDS = 150
"""Less than the stack waits for this part."""


def main() -> int:
    """Start the head and watch it; return non-zero when one of its servers died, so that the supervisor restarts it."""
    wanted = _arguments()
    ready = Path(wanted.ready)
    ready.unlink(missing_ok=True)
    # Agents and workers of a head that was killed notice it only after some seconds.
    kill_all(marked(wanted.home, part="ray"))
    _forget_old_sessions(Path(wanted.temp))

    from ray._private import services
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    begun: list[Node] = []
    services.get_node = patient(
        services.get_node,
        lambda: [
            last_words(Path(node.get_logs_dir_path()), str(name))
            for node in begun
            for name, _ in node.dead_processes()
        ],
    )

    class Head(Node):
        """A head without the dashboard's process, which Ray starts even where there is no dashboard."""

        def start_ray_processes(self) -> None:
            """Start Ray's own, and let them be watched before the head stands."""
            super().start_ray_processes()
            begun.append(self)

        def start_api_server(self, **_: object) -> None:
            """Start none."""

    node = Head(
        RayParams(
            node_ip_address="127.0.0.1",
            gcs_server_port=wanted.gcs,
            object_manager_port=wanted.object_manager,
            node_manager_port=wanted.node_manager,
            dashboard_agent_listen_port=wanted.agent,
            metrics_agent_port=wanted.agent_grpc,
            runtime_env_agent_port=wanted.runtime_env,
            metrics_export_port=wanted.metrics,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
            num_cpus=wanted.cpus,
            object_store_memory=wanted.object_store_bytes,
            object_spilling_directory=wanted.spill,
            temp_dir=wanted.temp,
        ),
        head=True,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    ready.write_text(str(os.getpid()))
    print(f"Ray head at {node.gcs_address}, session {node.get_session_dir_path()}", flush=True)

    def stop(number: int, frame: FrameType | None) -> None:
        ready.unlink(missing_ok=True)
        node.kill_all_processes(check_alive=False, allow_graceful=True)
        kill_all(marked(wanted.home, part="ray"))
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    while not (dead := node.dead_processes()):
        time.sleep(0.5)
    ready.unlink(missing_ok=True)
    print(
        f"died: {', '.join(str(name) for name, _ in dead)}; starting over",
        file=sys.stderr,
        flush=True,
    )
    kill_all(marked(wanted.home, part="ray"))
    return 1


def patient(ask: Callable[..., Any], died: Callable[[], list[str]]) -> Callable[..., Any]:
    """Asks for the node until it has registered: Ray gives it 30 s, which a busy machine takes to start it.

    Args:
        ask: Returns the node, or raises RuntimeError where it has not registered.
        died: Names the head's servers that have ended, and says why. A node whose raylet is dead never
            registers: the asking ends with a ChildProcessError, and the supervisor starts the head anew while the
            stack still waits for it.
    """

    def asked(*arguments: Any) -> Any:
        ends = time.monotonic() + START_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if dead := died():
                    raise ChildProcessError(f"died while starting: {', '.join(dead)}") from None
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)

    return asked


def last_words(logs: Path, server: str) -> str:
    """Name a server of the head and quote the end of what it wrote: its session's logs go when the stack stops."""
    said = [server]
    for log in sorted(logs.glob(f"{server}.*")):
        lines = log.read_text(errors="replace").split("\n")
        said += [f"  {log.name}: {line}" for line in [line for line in lines if line][-3:]]
    return "\n".join(said)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ray head node on 127.0.0.1")
    for name in ("home", "temp", "spill", "ready"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("cpus", "object-store-bytes", "gcs", "object-manager", "node-manager"):
        parser.add_argument(f"--{name}", required=True, type=int)
    for name in ("agent", "agent-grpc", "runtime-env", "metrics"):
        parser.add_argument(f"--{name}", required=True, type=int)
    return parser.parse_args()


def _forget_old_sessions(temp: Path, keep: int = 2) -> None:
    sessions = [path for path in temp.glob("session_*") if path.is_dir() and not path.is_symlink()]
    for session in sorted(sessions, key=lambda path: path.name)[: -keep or None]:
        shutil.rmtree(session, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
