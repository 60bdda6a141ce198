"""Services start with what the chart tells them, and find each other by it."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

import pytest
import yaml
from tests.deploy.chart import (
    CHART,
    PLACES,
    Helm,
    HelmError,
    Object,
    containers,
    environment,
    of_kind,
    pods,
)
from tools.sync_chart import SERVICES

from everloop_inference import metrics_gateway
from everloop_runtime.settings import ServiceSettings


def settings(
    service: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> ServiceSettings:
    for name in list(os.environ):
        if name.startswith("EVERLOOP_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    kind = getattr(importlib.import_module(f"everloop_{service}.settings"), SERVICES[service])
    known = {f"EVERLOOP_{name.upper()}" for name in kind.model_fields}
    assert {name for name in variables if name.startswith("EVERLOOP_")} <= known
    return kind.load()  # type: ignore[no-any-return]


def runs(objects: list[Object]) -> dict[str, dict[str, str]]:
    """Service to the environment of the container that runs its code."""
    found = {}
    for name, pod in pods(objects):
        container = pod["spec"]["containers"][0]
        if name.startswith("StatefulSet/"):
            found[container["args"][-1].removeprefix("everloop_")] = environment(container)
        if name.endswith("/replicas"):
            found["inference"] = environment(container)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_each_service_reads_its_environment(
    place: str, helm: Helm, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = helm.render(place)
    services = runs(objects)
    assert set(services) == set(SERVICES)
    addresses = {
        f"{name}:{port['port']}"
        for name, item in of_kind(objects, "Service").items()
        for port in item["spec"]["ports"]
    }
    clusters = of_kind(objects, "RayCluster")
    addresses |= {f"{name}-head-svc:6379" for name in clusters}
    values = yaml.safe_load((CHART / f"values-{place}.yaml").read_text())
    for service, variables in services.items():
        loaded = settings(service, variables, monkeypatch)
        assert loaded.kafka_bootstrap == values["kafka"]["bootstrap"]
        keys = values["credentials"].get("keys", False) and service != "inference"
        assert bool(loaded.s3_access_key) == keys
        for field in ("registry_address", "ingest_address", "ray_address"):
            if hasattr(loaded, field) and (service, field) != ("inference", "ray_address"):
                assert getattr(loaded, field) in addresses, (service, field)
        if service != "inference":
            assert loaded.database_url.startswith("postgresql+psycopg://everloop@")
            assert f"/everloop_{service}?" in loaded.database_url
            assert variables["PGPASSWORD"] == "<database_password>"


def test_the_secret_of_webhooks_goes_to_the_gateway_and_may_be_missing(helm: Helm) -> None:
    found = [
        (item["name"], item["valueFrom"]["secretKeyRef"]["optional"])
        for _, pod in pods(helm.render("local"))
        for container in containers(pod)
        for item in container.get("env", [])
        if item["name"] == "EVERLOOP_WEBHOOK_SECRET"
    ]
    assert found == [("EVERLOOP_WEBHOOK_SECRET", True)]


def test_services_ask_who_calls_where_the_chart_is_given_a_secret_of_callers(helm: Helm) -> None:
    assert "EVERLOOP_CALLERS_FILE" not in str(helm.render("local"))
    objects = helm.render("local", "--set", "callers.secret=who")
    services = runs(objects)
    assert set(services) == set(SERVICES)
    for service, variables in services.items():
        assert variables["EVERLOOP_CALLERS_FILE"] == "/etc/everloop/callers/callers.yaml"
        # Those who call others, and nobody else, have a token.
        expected = f"<token_{service}>" if service in ("trainer", "inference") else None
        assert variables.get("EVERLOOP_TOKEN") == expected
    for name, pod in pods(objects):
        for container in containers(pod):
            if "EVERLOOP_CALLERS_FILE" not in environment(container):
                continue
            mounted = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
            (volume,) = (
                item["secret"]
                for item in pod["spec"]["volumes"]
                if item["name"] == mounted["/etc/everloop/callers"]
            )
            assert volume["secretName"] == "who", name
            assert [item["key"] for item in volume["items"]] == ["callers.yaml"]


def test_own_settings_go_before_common_ones(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = helm.render(
        "local",
        "--set",
        "settings.log_level=WARNING,services.monitor.settings.log_level=DEBUG,services.ingest.settings.shard_rows=7",
    )
    services = runs(objects)
    assert settings("monitor", services["monitor"], monkeypatch).log_level == "DEBUG"
    ingest = settings("ingest", services["ingest"], monkeypatch)
    assert (ingest.log_level, ingest.shard_rows) == ("WARNING", 7)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("services.ingest.settings.shard_row=5", "shard_row"),
        ("services.monitor.settings.fitted_models=0", "fitted_models"),
        ("services.trainer.settings.kafka_bootstrap=x:1", "kafka_bootstrap"),
        ("kafak.bootstrap=x:1", "kafak"),
        ("kafka.bootstrap=nowhere", "kafka.bootstrap"),
        ("image.tag=latest", "image.tag"),
        ("mlflow.image=mlflow", "mlflow.image"),
        ("ray.serving.workers.min=0", "workers"),
        ("network.callers[0].ipBlock.cidr=0.0.0.0/0", "cidr"),
        ("network.callers[0].podSelector=null", "callers"),
    ],
)
def test_a_typo_is_refused_by_name(given: str, complaint: str, helm: Helm) -> None:
    with pytest.raises(HelmError, match="schema"):
        try:
            helm.render("local", "--set", given)
        except HelmError as error:
            # Releases of helm write the path with dots or with slashes.
            assert complaint in str(error).replace("/", ".")
            raise


def test_the_chart_names_what_it_was_not_told(helm: Helm) -> None:
    with pytest.raises(HelmError, match=r"kafka.bootstrap"):
        helm("template", "everloop", CHART, "--kube-version", "1.33.0")
    with pytest.raises(HelmError, match="credentials"):
        helm.render("existing", "--set", "credentials.existingSecret=")
    with pytest.raises(HelmError, match=r"mlflow.uri"):
        helm.render("existing", "--set", "mlflow.uri=")


def test_a_changed_pipeline_starts_pods_anew(helm: Helm) -> None:
    before, after = (
        {
            name: pod["metadata"].get("annotations")
            for name, pod in pods(helm.render("local", *options))
        }
        for options in ((), ("--set", "pipelines.other\\.yaml=name: other"))
    )
    same = {name for name in before if before[name] == after[name]}
    assert {name.partition("/")[0] for name in same} == {"Deployment", "Job", "RayCluster"}


def test_pods_mount_the_pipelines_that_were_given(helm: Helm) -> None:
    objects = helm.render("local")
    assert set(of_kind(objects, "ConfigMap")["everloop-pipelines"]["data"]) == {
        "flight-delays.yaml"
    }
    for name, pod in pods(objects):
        if name.startswith(("StatefulSet/", "Ray")):
            for container in containers(pod):
                mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
                assert {
                    "/etc/everloop/pipelines",
                    "/var/lib/everloop",
                    "/tmp",
                } <= mounted or container["name"] == "ray"


def test_rules_and_dashboards_are_taken_in(helm: Helm, tmp_path: Path) -> None:
    chart = tmp_path / "everloop"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("files"))
    rules = {
        "groups": [
            {
                "name": "g",
                "rules": [{"alert": "A", "expr": "up == 0", "annotations": {"x": "{{ $value }}"}}],
            }
        ]
    }
    (chart / "files/prometheus").mkdir(parents=True)
    (chart / "files/prometheus/alerts.yaml").write_text(yaml.safe_dump(rules))
    (chart / "files/grafana").mkdir()
    (chart / "files/grafana/loop.json").write_text('{"title": "{{pipeline}}"}')
    objects = helm.render("eks", chart=chart)
    rule = of_kind(objects, "PrometheusRule")["everloop-alerts"]
    assert rule["spec"] == rules
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    board = of_kind(objects, "ConfigMap")["everloop-dashboard-loop"]
    assert board["data"] == {"loop.json": '{"title": "{{pipeline}}"}'}
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_monitors_find_every_metrics_endpoint(helm: Helm) -> None:
    objects = helm.render("eks")
    services = of_kind(objects, "Service")
    scraped = set()
    for monitor in of_kind(objects, "ServiceMonitor").values():
        for name, service in services.items():
            if (
                monitor["spec"]["selector"]["matchLabels"].items()
                <= service["metadata"]["labels"].items()
            ):
                (endpoint,) = monitor["spec"]["endpoints"]
                assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
                scraped.add(name)
    assert scraped == {f"everloop-{part.replace('_', '-')}" for part in SERVICES}


def test_replicas_push_their_metrics_to_the_container_beside_them(helm: Helm) -> None:
    objects = helm.render("eks")
    replica, gateway = next(
        containers(pod) for name, pod in pods(objects) if name.endswith("/replicas")
    )
    port = gateway["ports"][0]
    assert (
        environment(replica)["EVERLOOP_METRICS_PUSH_ADDRESS"]
        == f"127.0.0.1:{port['containerPort']}"
    )
    assert environment(gateway)["EVERLOOP_METRICS_ADDRESS"] == f"0.0.0.0:{port['containerPort']}"
    assert gateway["args"][-1] == metrics_gateway.__name__
    (scraped,) = (
        item
        for item in of_kind(objects, "Service")["everloop-inference"]["spec"]["ports"]
        if item["name"] == "metrics"
    )
    assert scraped["targetPort"] == port["name"]


def test_tls_comes_from_an_issuer_or_a_secret(helm: Helm) -> None:
    options = (
        "--set",
        "ingress.enabled=true,ingress.http.host=a.example.com,ingress.grpc.host=b.example.com",
    )
    made = of_kind(
        helm.render("local", *options, "--set", "ingress.tls.clusterIssuer=ca"), "Ingress"
    )
    assert {name: item["spec"]["tls"][0]["secretName"] for name, item in made.items()} == {
        "everloop-inference-http": "everloop-inference-http-tls",
        "everloop-inference-grpc": "everloop-inference-grpc-tls",
    }
    assert all(
        item["metadata"]["annotations"]["cert-manager.io/cluster-issuer"] == "ca"
        for item in made.values()
    )
    given = of_kind(
        helm.render("local", *options, "--set", "ingress.tls.secretName=mine"), "Ingress"
    )
    assert {item["spec"]["tls"][0]["secretName"] for item in given.values()} == {"mine"}
