"""A Ray node beside the head on this machine, which ends as a whole when it is killed.

Its arguments: the head, `host:port`; CPUs; a file that appears when it is up.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from ray._private.node import Node
from ray._private.parameter import RayParams


def main() -> None:
    """Runs until it is told to stop."""
    head, cpus, ready = sys.argv[1:]
    Node(
        RayParams(
            gcs_address=head,
            node_ip_address="127.0.0.1",
            num_cpus=int(cpus),
            dashboard_agent_listen_port=0,
            include_log_monitor=False,
            object_store_memory=100_000_000,
        ),
        head=False,
        shutdown_at_exit=True,
        spawn_reaper=True,
    )
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    Path(ready).touch()
    signal.pause()


if __name__ == "__main__":
    main()
