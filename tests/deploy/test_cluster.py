"""The life of a release on a real Kubernetes API, in a namespace that enforces `restricted`.

Any cluster with the CRDs of KubeRay and the Prometheus operator, that can pull the images.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.deploy.chart import CHART, PIPELINE, PLACES, ROOT, Helm, HelmError, Object, of_kind

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(600)]
KINDS = "statefulset,deployment,job,pod,pvc,secret,configmap,service,pdb,networkpolicy,rayservice,raycluster"


def kubectl(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, input=given)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def namespace() -> Iterator[str]:
    if "KUBECONFIG" not in os.environ or not shutil.which("kubectl"):
        pytest.skip("no cluster: KUBECONFIG names none, or kubectl is missing")
    name = f"everloop-test-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", name)


def objects(namespace: str, kinds: str, label: str) -> list[Object]:
    found = json.loads(kubectl("get", kinds, "-n", namespace, "-l", label, "-o", "json"))
    return list(found["items"])


def place(namespace: str) -> tuple[str, ...]:
    values = CHART / "values-local.yaml"
    return (
        *("--namespace", namespace, "--values", str(values), "--set-file", PIPELINE),
        *("--set", "monitoring.enabled=true", "--wait"),
    )


def test_a_release_lives_and_leaves_nothing(helm: Helm, namespace: str) -> None:
    options = place(namespace)
    for release in ("everloop", "second"):
        helm("install", release, CHART, *options, "--timeout", "180s")
    mine = "app.kubernetes.io/instance=everloop"
    assert {item["status"]["readyReplicas"] for item in objects(namespace, "sts", mine)} == {1}
    assert not objects(namespace, "job", mine)

    helm("upgrade", "everloop", CHART, *options, "--set", "services.ingest.settings.shard_rows=7")
    good = ("--set", "image.tag=broken", "--atomic", "--timeout", "20s")
    with pytest.raises(HelmError):
        helm("upgrade", "everloop", CHART, *options, *good)
    for item in objects(namespace, "sts", mine):
        assert item["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":0.1.0")
    helm("rollback", "everloop", "1", "--namespace", namespace, "--wait")

    helm("uninstall", "everloop", "--namespace", namespace, "--wait")
    kubectl("wait", "--for=delete", "pvc,pod", "-n", namespace, "-l", mine, "--timeout", "60s")
    assert objects(namespace, KINDS, mine) == []
    assert len(objects(namespace, "sts", "app.kubernetes.io/instance=second")) == 4


def test_two_releases_share_nothing(helm: Helm, namespace: str) -> None:
    for release in ("everloop", "second"):
        helm("install", release, CHART, *place(namespace), "--timeout", "180s")
    names = [
        {(item["kind"], item["metadata"]["name"]) for item in objects(namespace, KINDS, label)}
        for label in (f"app.kubernetes.io/instance={name}" for name in ("everloop", "second"))
    ]
    assert len(names[0]) == len(names[1]) > 20
    assert not names[0] & names[1]
    found = objects(namespace, "endpoints", "app.kubernetes.io/name=everloop")
    behind = {
        (item["metadata"]["labels"]["app.kubernetes.io/instance"], address["targetRef"]["name"])
        for item in found
        for subset in item.get("subsets", ())
        for address in subset["addresses"]
    }
    pods = {
        (item["metadata"]["labels"]["app.kubernetes.io/instance"], item["metadata"]["name"])
        for item in objects(namespace, "pod", "app.kubernetes.io/name=everloop")
    }
    assert behind == pods and len(pods) == 2 * 5


def test_databases_are_migrated_one_after_another_and_before_anything_runs(
    helm: Helm, namespace: str, tmp_path: Path
) -> None:
    seen = tmp_path / "jobs"
    watch = ["kubectl", "get", "jobs", "-n", namespace, "--watch", "-o", "json"]
    for verb in ("install", "upgrade"):
        with seen.open("w") as file:
            watching = subprocess.Popen([*watch, "--output-watch-events"], stdout=file)
            try:
                helm(verb, "everloop", CHART, *place(namespace), "--timeout", "180s")
            finally:
                watching.terminate()
                watching.wait()
        assert _order(seen.read_text()) == [
            (f"everloop-{part}-migration", happened)
            for part in ("ingest", "registry-gateway", "trainer", "monitor")
            for happened in ("ADDED", "Complete")
        ]
        if verb == "install":
            made = objects(namespace, "sts,deployment", "app.kubernetes.io/instance=everloop")
            began = min(item["metadata"]["creationTimestamp"] for item in made)
            assert _ended(seen.read_text()) <= began


def _events(text: str) -> Iterator[Object]:
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        event, end = decoder.raw_decode(text[at:].lstrip())
        at += len(text[at:]) - len(text[at:].lstrip()) + end
        yield event


def _order(text: str) -> list[tuple[str, str]]:
    """Which job began, and which was complete, as it happened."""
    found: dict[tuple[str, str], None] = {}
    for event in _events(text):
        job = event["object"]
        if event["type"] == "ADDED":
            found[job["metadata"]["name"], "ADDED"] = None
        for condition in job.get("status", {}).get("conditions", ()):
            if condition["type"] == "Complete" and condition["status"] == "True":
                found[job["metadata"]["name"], "Complete"] = None
    return list(found)


def _ended(text: str) -> str:
    """When the last job was complete."""
    return max(
        event["object"]["status"]["completionTime"]
        for event in _events(text)
        if "completionTime" in event["object"].get("status", {})
    )


def test_a_drain_leaves_replicas_that_answer(helm: Helm, namespace: str) -> None:
    two = ("--set", "ray.serving.workers.min=2")
    helm("install", "everloop", CHART, *place(namespace), *two, "--timeout", "180s")
    # No operator runs here: these are the pods that KubeRay makes of the RayService.
    (service,) = objects(namespace, "rayservice", "app.kubernetes.io/instance=everloop")
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for number in (1, 2):
        pod = {**group["template"], "apiVersion": "v1", "kind": "Pod"}
        pod["metadata"] = {**pod["metadata"], "name": f"worker-{number}"}
        kubectl("apply", "-n", namespace, "-f", "-", given=json.dumps(pod))
    kubectl(
        *("wait", "--for=condition=Ready", "pod/worker-1", "pod/worker-2", "-n", namespace),
        *("--timeout", "60s"),
    )
    kubectl(
        *("wait", "pdb/everloop-inference", "-n", namespace, "--timeout", "60s"),
        "--for=jsonpath={.status.disruptionsAllowed}=1",
    )
    evict(namespace, "worker-1")
    with pytest.raises(AssertionError, match="disruption budget"):
        evict(namespace, "worker-2")
    assert "worker-2" in kubectl("get", "pods", "-n", namespace, "-o", "name")


def evict(namespace: str, pod: str) -> None:
    """Asks as a drain does."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


def test_service_accounts_may_ask_the_api_what_a_stranger_may(helm: Helm, namespace: str) -> None:
    helm("install", "everloop", CHART, *place(namespace), "--timeout", "180s")

    def rules(account: str) -> str:
        who = f"--as=system:serviceaccount:{namespace}:{account}"
        return kubectl("auth", "can-i", "--list", who, "-n", namespace)

    accounts = {
        item["metadata"]["name"]
        for item in objects(namespace, "sa", "app.kubernetes.io/instance=everloop")
    }
    assert len(accounts) == 6
    used = {
        item["spec"]["serviceAccountName"]
        for item in objects(namespace, "pod", "app.kubernetes.io/instance=everloop")
    }
    assert used <= accounts
    for account in accounts:
        assert rules(account) == rules("nobody"), account
    assert "secrets" not in rules("nobody") and "pods" not in rules("nobody")


@pytest.mark.parametrize("where", PLACES)
def test_the_api_knows_every_field(helm: Helm, namespace: str, where: str) -> None:
    options = ["--set", "monitoring.enabled=true"]
    known = kubectl("api-resources", "--no-headers")
    if "ScaledObject" in known:
        options += ["--set", "services.ingest.scale.max=3,storage.sharedClassName=shared"]
    made = helm.render(where, *options)
    assert of_kind(made, "RayService") and of_kind(made, "RayCluster")
    assert of_kind(made, "ServiceMonitor") and of_kind(made, "PrometheusRule")
    kinds = {line.split()[-1] for line in known.splitlines()}
    missing = {item["kind"] for item in made} - kinds
    assert missing <= {"ExternalSecret"}
    for item in made:
        item["metadata"]["namespace"] = namespace
    text = yaml.safe_dump_all(item for item in made if item["kind"] in kinds)
    told = kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", given=text)
    assert told.count("(server dry run)") == len([i for i in made if i["kind"] in kinds])


@pytest.mark.parametrize("name", ["everloop-inference", "everloop-training"])
def test_a_head_is_admitted_with_the_autoscaler_beside_it(
    helm: Helm, namespace: str, name: str
) -> None:
    made = of_kind(helm.render("eks"), "RayService", "RayCluster")[name]["spec"]
    cluster = made.get("rayClusterConfig", made)
    pod = cluster["headGroupSpec"]["template"]
    (head,) = pod["spec"]["containers"]
    # As KubeRay composes it: the head's image, and what the options say.
    scaler = {"name": "autoscaler", "image": head["image"], **cluster["autoscalerOptions"]}
    scaler.pop("idleTimeoutSeconds", None)
    pod["spec"]["containers"].append(scaler)
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    pod["metadata"] |= {"name": "head", "namespace": namespace}
    told = kubectl("apply", "--dry-run=server", "-f", "-", given=json.dumps(pod))
    assert told == "pod/head created (server dry run)\n"


def test_operations_are_run_as_they_are_written(helm: Helm, namespace: str, tmp_path: Path) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    chapter = text.partition("## On Kubernetes, with Helm")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", chapter, re.S)
    assert [line.split()[1] for line in block.splitlines() if line.startswith("helm ")] == [
        "install",
        "upgrade",
        "uninstall",
    ]
    # The reader's own file, and a namespace that is not taken.
    values = yaml.safe_load((CHART / "values-local.yaml").read_text())
    (tmp_path / "my-values.yaml").write_text(yaml.safe_dump(values))
    written = block.replace("--namespace everloop", f"--namespace {namespace}").replace(
        "--values my-values.yaml", f"--values {tmp_path}/my-values.yaml"
    )
    found = f"{Path(helm.program).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", written],
        cwd=ROOT,
        env={**os.environ, "PATH": found},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not objects(namespace, "sts,deployment,rayservice", "app.kubernetes.io/name=everloop")
