"""The life of a release on a real Kubernetes API, in a namespace that enforces `restricted`.

Any cluster with the CRDs of KubeRay and the Prometheus operator, that can pull the images.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from tests.deploy.chart import CHART, PIPELINE, Helm, HelmError, Object

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(600)]
KINDS = "statefulset,deployment,job,pod,pvc,secret,configmap,service,pdb,networkpolicy,rayservice,raycluster"


def kubectl(*arguments: str) -> str:
    done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=True)
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
