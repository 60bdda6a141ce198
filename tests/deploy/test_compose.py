"""compose.yaml is the platform of the chart on one machine: the same images, and settings that exist."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from tests.deploy.chart import CHART, ROOT
from tests.deploy.test_wiring import settings
from tools.sync_chart import SERVICES

COMPOSE: dict[str, Any] = yaml.safe_load(
    (ROOT / "compose.yaml")
    .read_text()
    .replace("${IMAGES:-everloop}", "everloop")
    .replace("${VERSION:-0.1.0}", "0.1.0")
)
PARTS: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_reads_its_environment(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PARTS[service.replace("_", "-")]
    dockerfile = (ROOT / "services" / service / "Dockerfile").read_text()
    base = (ROOT / "deploy/images/Dockerfile").read_text()
    of_image = dict(re.findall(r"(EVERLOOP_[A-Z_]+)=(\S+)", base + dockerfile.split("FROM")[-1]))
    own = {name for name in part["environment"] if name.startswith("EVERLOOP_")}
    # Common variables are told to all, also to those that have no such setting.
    known = {"EVERLOOP_INGEST_ADDRESS", "EVERLOOP_REGISTRY_ADDRESS"}
    told = {name: part["environment"][name] for name in own - known}
    loaded = settings(service, {**of_image, **told}, monkeypatch)
    assert loaded.kafka_bootstrap == "kafka:9092"
    if service != "inference":
        assert loaded.database_url.endswith(f"/everloop_{service}")
        assert f"CREATE DATABASE everloop_{service};" in COMPOSE["configs"]["databases"]["content"]
    for name in known & own:
        host, _, port = part["environment"][name].partition(":")
        assert (
            f"0.0.0.0:{port}"
            in (ROOT / f"services/{host.replace('-', '_')}/Dockerfile").read_text()
        )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_may_no_more_than_in_the_chart(service: str) -> None:
    part = PARTS[service.replace("_", "-")]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert part["image"] == f"everloop-{service.replace('_', '-')}:{version}"
    assert part["read_only"] and part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    written = [str(place).rpartition("/var")[2] for place in (*part["volumes"], *part["tmpfs"])]
    assert any(place.startswith("/lib/everloop") for place in written)


def test_what_it_stands_on_is_what_the_charts_name() -> None:
    backing = yaml.safe_load((ROOT / "deploy/helm/backing/values.yaml").read_text())
    for part, image in backing["images"].items():
        assert PARTS[part]["image"] == image
    chart = yaml.safe_load((CHART / "values.yaml").read_text())
    assert PARTS["mlflow"]["image"] == chart["mlflow"]["image"]
    for name in backing["databases"]:
        assert f"CREATE DATABASE {name};" in COMPOSE["configs"]["databases"]["content"]
    for name in backing["buckets"]:
        assert name in PARTS["buckets"]["command"][0]


def test_only_this_machine_reaches_it() -> None:
    ports = [port for part in PARTS.values() for port in part.get("ports", ())]
    assert len(ports) >= 9
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_every_service() -> None:
    scrape = yaml.safe_load(COMPOSE["configs"]["scrape"]["content"])
    targets = {job["static_configs"][0]["targets"][0] for job in scrape["scrape_configs"]}
    expected = set()
    for service in SERVICES:
        text = (ROOT / "services" / service / "Dockerfile").read_text()
        (port,) = set(re.findall(r"EVERLOOP_METRICS_ADDRESS=0\.0\.0\.0:(\d+)", text))
        expected.add(f"{service.replace('_', '-')}:{port}")
    assert targets == expected
