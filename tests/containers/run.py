"""A service in its container, as narrow as the chart makes it, on this machine's network."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from docker.models.containers import Container
from docker.models.volumes import Volume
from testcontainers.core.container import DockerContainer
from tests.deploy.chart import CHART

from everloop.stack import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import Part
from everloop.stack.parts import build

SERVICES = ("ingest", "registry_gateway", "trainer", "inference", "monitor")
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
HEALTHY_SECONDS = 240.0
GRACE_SECONDS = 60
USER = 10001


def image(service: str) -> str:
    """As tools/images.sh names it."""
    return f"{os.environ.get('IMAGES', 'everloop')}-{service.replace('_', '-')}:{VERSION}"


def environment(part: Part, endpoints: Endpoints) -> dict[str, str]:
    """What the embedded stack tells a service, but for Ray: in a container there is a head beside it."""
    told, ports = {**endpoints.environment(), **part.environment}, endpoints.ports
    if part.name == "inference":
        told["RAY_START_OPTIONS"] = (
            f"--port={ports['ray']} --ray-client-server-port={ports['ray_agent']}"
        )
    if part.name == "trainer":
        told["EVERLOOP_RAY_ADDRESS"] = "auto"
        told["RAY_START_OPTIONS"] = f"--port=0 --ray-client-server-port={ports['ray_agent_grpc']}"
    return {
        name: value
        for name, value in told.items()
        if name.startswith(("EVERLOOP_", "RAY_START")) and name != "EVERLOOP_HOME"
    }


def command(service: str) -> list[str]:
    beside = ["with-ray"] if service in ("trainer", "inference") else []
    return [*beside, "python", "-m", f"everloop_{service}"]


@dataclass
class Running:
    container: Container
    volume: Volume

    @classmethod
    def start(cls, service: str, platform: Endpoints, callers: Path | None = None) -> Running:
        """Starts it; where there is a file of callers, alone in its folder, as the chart mounts it."""
        described = DockerContainer(image(service)).with_command(command(service))
        volume = described.get_docker_client().client.volumes.create()
        home = Home.at(Path(platform.home))
        (part,) = (part for part in build(home, platform) if part.name == service)
        described.env.update(environment(part, platform))
        for name in ("DATA_DIR", "PIPELINES_DIR"):  # as the image has it
            del described.env[f"EVERLOOP_{name}"]
        described.with_env("EVERLOOP_DATABASE_URL", f"sqlite:////var/lib/everloop/{service}.db")
        described.with_volume_mapping(platform.pipelines_dir, "/etc/everloop/pipelines")
        described.with_volume_mapping(volume.name, "/var/lib/everloop", "rw")
        if callers:
            described.with_volume_mapping(str(callers.parent), "/etc/everloop/callers")
            described.with_env("EVERLOOP_CALLERS_FILE", f"/etc/everloop/callers/{callers.name}")
        described.with_tmpfs_mount("/tmp")
        described.with_kwargs(
            network_mode="host",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            shm_size="1g",
        )
        return cls(described.start().get_wrapped_container(), volume)

    def stop(self) -> int:
        """Ends it as Kubernetes does and returns the exit status; 137 where it had to be killed."""
        self.container.stop(timeout=GRACE_SECONDS)
        return int(state(self.container)["ExitCode"])

    def run(self, *command: str) -> tuple[int, str]:
        """Runs a command inside; returns its exit status and what it prints."""
        code, output = self.container.exec_run(list(command))
        return code, output.decode()

    def remove(self) -> None:
        self.container.remove(force=True)
        self.volume.remove()


def state(container: Container) -> dict[str, Any]:
    """What the engine knows about it now."""
    container.reload()
    return dict(container.attrs["State"])


def wait_healthy(container: Container) -> None:
    """Waits for what the image's own check says."""
    deadline = time.monotonic() + HEALTHY_SECONDS
    while (now := state(container))["Health"]["Status"] != "healthy":
        said = container.logs(tail=60).decode()
        assert now["Running"] and time.monotonic() < deadline, (now, said)
        time.sleep(0.5)
