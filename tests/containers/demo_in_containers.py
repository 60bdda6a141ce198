"""Runs the demo with the five services in their images instead of in processes; its arguments are the demo's."""

from __future__ import annotations

import os
import runpy
from dataclasses import replace

from tests.containers.run import GRACE_SECONDS, HEALTHY_SECONDS, USER, command, environment, image

from everloop.stack import lifecycle
from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import Part, Progress
from everloop.stack.parts import SERVICES, build


def contained(home: Home, endpoints: Endpoints) -> list[Part]:
    """Describes the stack with a container in the place of each service's process."""
    parts = {part.name: part for part in build(home, endpoints)}
    del parts["ray"]
    return [
        _contained(part, home, endpoints) if part.name in SERVICES else part
        for part in parts.values()
    ]


def _contained(part: Part, home: Home, endpoints: Endpoints) -> Part:
    # Folders are where they are outside: clients read the data repository by its path.
    data, pipelines = home.data(part.name), endpoints.pipelines_dir
    run = ["docker", "run", "--rm", "--network=host", "--read-only", "--cap-drop=ALL"]
    run += ["--tmpfs=/tmp", "--shm-size=1g", "--security-opt=no-new-privileges"]
    run += [f"--stop-timeout={GRACE_SECONDS}", f"--label=everloop.home={home.root}"]
    run += [f"--volume={data}:{data}", f"--volume={pipelines}:{pipelines}:ro"]
    run += [f"--env={name}={value}" for name, value in environment(part, endpoints).items()]
    run += [image(part.name), *command(part.name)]

    def prepare(progress: Progress) -> None:
        data.mkdir(parents=True, exist_ok=True)
        os.chown(data, USER, USER)

    return replace(
        part,
        command=tuple(run),
        environment={},
        prepare=prepare,
        # Two Ray heads that start at once: on a busy machine one may time out, and starts anew.
        deadline_seconds=HEALTHY_SECONDS * 2,
        stop_seconds=GRACE_SECONDS + 10,
    )


if __name__ == "__main__":
    for call in (lifecycle.up, lifecycle.down):
        assert call.__kwdefaults__
        call.__kwdefaults__["catalog"] = contained
    runpy.run_module("everloop.demo", run_name="__main__")
