"""What must hold for every object of the chart, wherever it is installed."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
from ray.autoscaler._private.kuberay.node_provider import (
    IN_CLUSTER_CA_CERT_PATH,
    IN_CLUSTER_TOKEN_PATH,
)
from tests.deploy.chart import (
    PLACES,
    ROOT,
    Helm,
    HelmError,
    Object,
    containers,
    environment,
    of_kind,
    pods,
)

from everloop_contracts.pipeline import load_pipeline
from everloop_ingest.consumer import GROUP

EVERYTHING = (
    "--set",
    "ingress.enabled=true,ingress.http.host=p.example.com,monitoring.enabled=true",
)


@pytest.fixture(params=PLACES)
def objects(request: pytest.FixtureRequest, helm: Helm) -> list[Object]:
    return helm.render(request.param, *EVERYTHING)


def test_no_pod_may_more_than_it_needs(objects: list[Object]) -> None:
    seen = 0
    for name, pod in pods(objects):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        assert all("hostPath" not in volume for volume in spec["volumes"]), name
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            seen += 1
    assert seen >= 12


def test_every_container_is_bounded_and_pinned(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        for container in containers(pod):
            resources = container["resources"]
            assert set(resources["requests"]) == {"cpu", "memory"}, name
            assert resources["limits"]["memory"] == resources["requests"]["memory"], name
            tag = container["image"].rpartition("/")[2].partition(":")[2]
            assert tag and tag != "latest", name
        for volume in pod["spec"]["volumes"]:
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": ""}), (name, volume)


def test_everything_that_runs_is_probed(objects: list[Object]) -> None:
    for name, pod in pods(objects):
        if not name.startswith("Job/"):
            for container in pod["spec"]["containers"]:
                assert {"readinessProbe", "livenessProbe"} <= set(container), name


def test_nobody_may_ask_the_api(objects: list[Object]) -> None:
    assert not of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    for name, account in of_kind(objects, "ServiceAccount").items():
        assert account["automountServiceAccountToken"] is False, name


def heads(objects: list[Object]) -> dict[str, tuple[Object, Object]]:
    """Each Ray cluster's specification and the pod template of its head."""
    clusters = {
        name: item["spec"].get("rayClusterConfig", item["spec"])
        for name, item in of_kind(objects, "RayCluster", "RayService").items()
    }
    return {name: (spec, spec["headGroupSpec"]["template"]) for name, spec in clusters.items()}


def test_rays_autoscaler_has_the_token_of_the_api_and_nobody_beside_it(helm: Helm) -> None:
    for name, (spec, head) in heads(helm.render("eks")).items():
        assert spec["enableInTreeAutoscaling"], name
        mounts = {
            mount["mountPath"]: mount["name"] for mount in spec["autoscalerOptions"]["volumeMounts"]
        }
        token, authority = Path(IN_CLUSTER_TOKEN_PATH), Path(IN_CLUSTER_CA_CERT_PATH)
        (volume,) = (
            volume["projected"]["sources"]
            for volume in head["spec"]["volumes"]
            if volume["name"] == mounts[str(token.parent)]
        )
        assert volume == [
            {"serviceAccountToken": {"path": token.name}},
            {
                "configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": authority.name}],
                }
            },
        ]
        for container in containers(head):
            held = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts[str(token.parent)] not in held, name
    # Where the number of workers is fixed there is no autoscaler, and no token.
    _, fixed = heads(helm.render("local"))["everloop-inference"]
    assert not [volume for volume in fixed["spec"]["volumes"] if "projected" in volume]


def test_where_ray_scales_it_reaches_the_api(objects: list[Object]) -> None:
    for name in heads(objects):
        egress = of_kind(objects, "NetworkPolicy")[name]["spec"]["egress"]
        (rule,) = [
            rule for rule in egress if {"port": 6443, "protocol": "TCP"} in rule.get("ports", ())
        ]
        assert rule["to"] and all("ipBlock" in peer for peer in rule["to"]), name


def test_labels_are_text_whatever_the_release_is_called(helm: Helm) -> None:
    for release in ("y", "1e3", "null"):
        for item in helm.render("eks", *EVERYTHING, release=release):
            for labels in [
                item["metadata"]["labels"],
                *(p["metadata"]["labels"] for _, p in pods([item])),
            ]:
                assert all(isinstance(value, str) for value in labels.values()), labels


def test_names_fit_what_ray_appends(helm: Helm) -> None:
    for item in helm.render("local", release="a-release-whose-name-takes-all-that-helm-allows-53"):
        assert len(item["metadata"]["name"]) <= 63, item["metadata"]["name"]
        if item["kind"] in ("RayCluster", "RayService"):
            assert len(item["metadata"]["name"]) <= 47  # KubeRay's own bound


def allowed(objects: list[Object]) -> set[tuple[str, str, tuple[int, ...]]]:
    """Arrows between parts that policies let through at both ends."""
    found: dict[str, set[tuple[str, str, tuple[int, ...]]]] = {"ingress": set(), "egress": set()}
    for policy in of_kind(objects, "NetworkPolicy").values():
        here = policy["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component")
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction) or ():
                for peer in rule[side]:
                    labels = peer.get("podSelector", {}).get("matchLabels", {})
                    there = labels.get("app.kubernetes.io/component")
                    if there and labels["app.kubernetes.io/name"] == "everloop":
                        arrow = (there, here) if direction == "ingress" else (here, there)
                        ports = tuple(port["port"] for port in rule.get("ports", ()))
                        found[direction].add((*arrow, ports))
    assert found["ingress"] == found["egress"]
    return found["ingress"]


def test_parts_reach_what_the_picture_says_and_nothing_else(helm: Helm) -> None:
    assert allowed(helm.render("local")) == {
        ("trainer", "ingest", (15051,)),
        ("trainer", "registry-gateway", (15053,)),
        ("trainer", "mlflow", (5000,)),
        ("trainer", "training", ()),
        ("training", "trainer", ()),
        ("training", "training", ()),
        ("registry-gateway", "mlflow", (5000,)),
        ("inference", "registry-gateway", (15053,)),
        ("inference", "inference", ()),
        ("monitor", "mlflow", (5000,)),
    }


def test_no_rule_is_open_to_everybody(objects: list[Object]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    deny = policies.pop("everloop-default-deny")["spec"]
    assert "ingress" not in deny and "egress" not in deny
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    selected = {
        str(p["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"])
        for p in policies.values()
    }
    assert {
        pod["metadata"]["labels"]["app.kubernetes.io/component"] for _, pod in pods(objects)
    } <= selected
    for name, policy in policies.items():
        for rule in (*(policy["spec"]["ingress"] or ()), *policy["spec"]["egress"]):
            peers = rule.get("from") or rule.get("to")
            assert peers, name
            for peer in peers:
                assert (
                    peer.get("podSelector") or peer.get("namespaceSelector") or peer.get("ipBlock")
                ), name
                if block := peer.get("ipBlock"):
                    assert ipaddress.ip_network(block["cidr"]).prefixlen > 0, name


def test_hooks_run_in_order_and_leave_nothing(objects: list[Object]) -> None:
    hooks = [item for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})]
    weights = {}
    for item in hooks:
        notes = item["metadata"]["annotations"]
        assert notes["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert (
            notes["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded,hook-failed"
        )
        weights[f"{item['kind']}/{item['metadata']['name']}"] = int(notes["helm.sh/hook-weight"])
    jobs = sorted(
        (name for name in weights if name.startswith("Job/")), key=lambda name: weights[name]
    )
    assert [re.sub("Job/everloop-(.*)-migration", r"\1", name) for name in jobs] == [
        "ingest",
        "registry-gateway",
        "trainer",
        "monitor",
    ]
    others = [weight for name, weight in weights.items() if not name.startswith("Job/")]
    assert all(weight < min(weights[name] for name in jobs) for weight in others)


SCALED = ("--set", "services.ingest.scale.max=4,storage.sharedClassName=shared")


def test_ingest_is_scaled_by_the_lag_of_its_own_group_on_one_shared_folder(helm: Helm) -> None:
    objects = helm.render("eks", *SCALED)
    (scaled,) = of_kind(objects, "ScaledObject").values()
    spec = scaled["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "name": "everloop-ingest",
    }
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    (trigger,) = spec["triggers"]
    pipeline = load_pipeline(ROOT / "pipelines/flight-delays.yaml")
    target = of_kind(objects, "StatefulSet")["everloop-ingest"]["spec"]
    told = environment(target["template"]["spec"]["containers"][0])
    assert trigger["metadata"] == {
        "bootstrapServers": told["EVERLOOP_KAFKA_BOOTSTRAP"],
        "consumerGroup": GROUP,
        "topic": pipeline.record_topic,
        "lagThreshold": "50000",
        "offsetResetPolicy": "earliest",
    }
    # An upgrade leaves the number to KEDA; a name for each pod, one folder for all of them.
    assert "replicas" not in target and "volumeClaimTemplates" not in target
    assert "EVERLOOP_INSTANCE" not in told  # the host's name, which is the pod's
    (claim,) = of_kind(objects, "PersistentVolumeClaim").values()
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (data,) = [it for it in target["template"]["spec"]["volumes"] if it["name"] == "data"]
    assert data["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_what_may_run_several_times_is_spread_and_drained_one_by_one(helm: Helm) -> None:
    objects = helm.render("eks", *SCALED)
    several = {"ingest", "mlflow", "inference"}
    budgets = of_kind(objects, "PodDisruptionBudget")
    assert set(budgets) == {f"everloop-{part}" for part in several}
    spread = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["spec"]
        for _, pod in pods(objects)
        if "topologySpreadConstraints" in pod["spec"]
    }
    assert set(spread) == several
    for part, spec in spread.items():
        chosen = budgets[f"everloop-{part}"]["spec"]["selector"]["matchLabels"]
        for constraint in spec["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"] == chosen
            # A zone that is full or gone keeps nobody from running elsewhere.
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"


def test_mlflow_is_scaled_by_its_processors(helm: Helm) -> None:
    objects = helm.render("eks")
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler").values()
    assert scaler["spec"]["scaleTargetRef"]["name"] == "everloop-mlflow"
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 4)
    assert "replicas" not in of_kind(objects, "Deployment")["everloop-mlflow"]["spec"]


def test_nothing_is_scaled_unless_it_is_asked_for(helm: Helm) -> None:
    objects = helm.render("local")
    assert not of_kind(objects, "ScaledObject", "HorizontalPodAutoscaler", "PersistentVolumeClaim")
    for kind in ("StatefulSet", "Deployment"):
        for name, item in of_kind(objects, kind).items():
            assert item["spec"]["replicas"] == 1, name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("services.ingest.scale.max=2", "storage.sharedClassName"),
        (
            "services.ingest.scale.min=5,services.ingest.scale.max=2,storage.sharedClassName=s",
            "min",
        ),
        ("services.monitor.scale.max=2", "scale"),
    ],
)
def test_what_cannot_be_scaled_is_refused(helm: Helm, values: str, said: str) -> None:
    with pytest.raises(HelmError, match=said):
        helm.render("local", "--set", values)
