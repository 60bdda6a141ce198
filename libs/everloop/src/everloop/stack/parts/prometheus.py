"""Prometheus with Everloop's rules, where the machine has it (Debian: `apt-get install prometheus`).

`EVERLOOP_ALERTMANAGER` (`host:port`) names who is told of alerts.
"""

from __future__ import annotations

import json
import os
import shutil

from everloop.addresses import repository_root
from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import Part, Progress
from everloop.stack.probes import http_ok

__all__ = ["installed", "part"]


def installed() -> bool:
    """Whether there is a Prometheus to run."""
    return shutil.which("prometheus") is not None


def part(home: Home, endpoints: Endpoints) -> Part:
    """Describe the server. It scrapes every service, whether it runs already or not."""
    data = home.data("prometheus")
    address = f"127.0.0.1:{endpoints.ports['prometheus']}"

    def prepare(progress: Progress) -> None:
        data.mkdir(parents=True, exist_ok=True)
        (data / "prometheus.yml").write_text(_configuration(endpoints))

    return Part(
        name="prometheus",
        command=(
            "prometheus",
            f"--config.file={data / 'prometheus.yml'}",
            f"--storage.tsdb.path={data / 'series'}",
            "--storage.tsdb.retention.time=7d",
            "--storage.tsdb.retention.size=512MB",
            f"--web.listen-address={address}",
            "--log.level=warn",
        ),
        environment={"GOMEMLIMIT": "256MiB"},
        endpoint=f"http://{address}",
        probe=lambda: http_ok(address, "/-/ready"),
        prepare=prepare,
    )


def _configuration(endpoints: Endpoints) -> str:
    jobs = [
        {"job_name": f"everloop-{name}", "static_configs": [{"targets": [address]}]}
        for name, address in endpoints.metrics.items()
    ]
    told = os.environ.get("EVERLOOP_ALERTMANAGER")
    managers = [{"static_configs": [{"targets": [told]}]}] if told else []
    # JSON is YAML.
    return json.dumps(
        {
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "rule_files": [str(repository_root() / "deploy/prometheus/*.yaml")],
            "alerting": {"alertmanagers": managers},
            "scrape_configs": jobs,
        },
        indent=2,
    )
