"""terraform/ applied to a stand-in of the AWS API as its README says: what it makes, and what the chart makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.chart import ROOT, Helm

pytestmark = [pytest.mark.terraform, pytest.mark.slow, pytest.mark.timeout(1500)]

MOTO = "moto[server]==5.2.1"
# The guide's commands, as they are written there, by what they make.
STATE, ENVIRONMENT, INSTALL, MODEL, AWAY = re.findall(
    r"```bash\n(.*?)```", (ROOT / "terraform/README.md").read_text(), re.S
)
WRITE = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}


@dataclass(frozen=True)
class Root:
    """One root of terraform/ in a folder of its own, with its state in the account."""

    name: str
    folder: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        done = subprocess.run(
            [ROOT / "tools/terraform.sh", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == expect, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout

    def helm_values(self) -> dict[str, Any]:
        return dict(json.loads(self("output", "-json", "helm_values")))

    def resources(self, kind: str) -> Iterator[dict[str, Any]]:
        """The values of all resources of a type, in every module."""
        shown = json.loads(self("show", "-json"))

        def walk(module: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for resource in module.get("resources", []):
                if resource["type"] == kind and resource["mode"] == "managed":
                    yield resource["values"]
            for child in module.get("child_modules", []):
                yield from walk(child)

        return walk(shown["values"]["root_module"])


@pytest.fixture(scope="session")
def moto() -> Path:
    """The Python of an environment that holds moto, made once."""
    if shutil.which("terraform") is None:
        pytest.skip("no terraform: install 1.11 or newer")
    folder = ROOT / ".everloop/cache/moto"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "-q", "--clear", "-p", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "-p", python, MOTO, "boto3"], check=True)
        (folder / "ready").touch()
    return python


@contextmanager
def aws(moto: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Runs the stand-in; gives the environment in which it is AWS, empty and as an account of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = Path(__file__).with_name("aws.py")
    with (folder / "aws.log").open("w") as log:
        process = subprocess.Popen(
            [moto, script, str(port)],
            env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"},
            stdout=log,
            stderr=log,
        )
    try:
        _wait(port)
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CHECKPOINT_DISABLE": "1",
            "TF_INPUT": "0",
            "TF_CLI_ARGS_apply": "-auto-approve -no-color",
        }
    finally:
        process.kill()
        process.wait()


def follow(folder: Path, environment: dict[str, str], commands: str) -> dict[str, str]:
    """Runs commands of the guide where a copy of terraform/ lies; returns the environment that they leave."""
    if not (folder / "terraform").exists():
        ignore = shutil.ignore_patterns(".terraform*")
        shutil.copytree(ROOT / "terraform", folder / "terraform", ignore=ignore)
        (folder / "deploy").symlink_to(ROOT / "deploy")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{commands}\nenv -0 > left"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    left = (folder / "left").read_text().rstrip("\0")
    return dict(variable.split("=", 1) for variable in left.split("\0"))


@pytest.fixture(scope="module", params=["dev", "prod"])
def applied(
    request: pytest.FixtureRequest, moto: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Root]:
    """An environment as the guide makes it."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    with aws(moto, folder) as environment:
        told = environment | {"TF_VAR_alarm_emails": '["operator@example.com"]'}
        commands = (STATE + ENVIRONMENT).replace("terraform/dev", f"terraform/{name}")
        yield Root(name, folder / "terraform" / name, follow(folder, told, commands))


def _wait(port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the stand-in of AWS does not listen")


def test_a_second_plan_is_empty(applied: Root) -> None:
    applied("plan", "-detailed-exitcode", "-input=false", "-no-color", expect=0)


def test_no_credential_is_in_the_state(applied: Root) -> None:
    (secret,) = applied.resources("aws_secretsmanager_secret_version")
    (database,) = applied.resources("aws_db_instance")
    for kept in (secret["secret_string"], secret["secret_string_wo"], database["password"]):
        assert not kept
    assert not database["password_wo"]


def _statements(policy: str) -> list[dict[str, Any]]:
    """Each with lists of actions and resources."""
    return [
        {
            **statement,
            **{
                key: value if isinstance(value, list) else [value]
                for key, value in statement.items()
                if key in ("Action", "Resource")
            },
        }
        for statement in json.loads(policy)["Statement"]
    ]


def _policies(root: Root) -> dict[str, list[dict[str, Any]]]:
    """Statements of the policies in line, by role without the environment's name."""
    return {
        policy["role"].removeprefix(f"everloop-{root.name}-"): _statements(policy["policy"])
        for policy in root.resources("aws_iam_role_policy")
    }


def test_no_role_may_do_everything(applied: Root) -> None:
    everywhere = set()
    for role, statements in _policies(applied).items():
        for statement in statements:
            assert statement["Effect"] == "Allow"
            assert not {"NotAction", "NotResource"} & statement.keys(), role
            assert not [action for action in statement["Action"] if "*" in action], role
            if "*" in statement["Resource"]:
                everywhere |= {(role, action) for action in statement["Action"]}
    # What AWS authorizes on no narrower resource: reads of the cluster autoscaler.
    assert {role for role, _ in everywhere} == {"cluster-autoscaler"}
    assert all(action.split(":")[1].startswith(("Describe", "Get")) for _, action in everywhere)


def test_a_service_reaches_its_own_objects_only(applied: Root) -> None:
    buckets = applied.helm_values()["objectStore"]["buckets"]
    data, dvc, mlflow = (f"arn:aws:s3:::{buckets[use]}" for use in ("data", "dvc", "mlflow"))
    wanted = {
        "ingest": {(data, "s3:ListBucket"), (dvc, "s3:ListBucket")}
        | {(place, action) for place in (f"{data}/*", f"{dvc}/dvc/*") for action in WRITE},
        "trainer": {(dvc, "s3:ListBucket"), (f"{dvc}/dvc/files/md5/*", "s3:GetObject")},
        "mlflow": {(mlflow, "s3:ListBucket")} | {(f"{mlflow}/*", action) for action in WRITE},
    }
    policies = _policies(applied)
    for service, grants in wanted.items():
        assert grants == {
            (resource, action)
            for statement in policies[service]
            for resource in statement["Resource"]
            for action in statement["Action"]
            if action.startswith("s3:")
        }
        (key,) = [it for it in policies[service] if it["Action"][0].startswith("kms:")]
        assert key["Condition"] == {
            "StringEquals": {"kms:ViaService": "s3.eu-central-1.amazonaws.com"}
        }
    assert not {"inference", "registry_gateway", "monitor"} & policies.keys()


def test_the_chart_takes_the_values_and_its_pods_the_roles(
    applied: Root, helm: Helm, tmp_path: Path
) -> None:
    rendered = tmp_path / "objects.yaml"
    account, written = INSTALL.split("\n", 1)
    assert account.startswith("aws eks update-kubeconfig --name everloop-dev")
    written = written.replace("terraform/dev", f"terraform/{applied.name}")
    written = written.replace("helm install", f"'{helm.program}' template").rstrip()
    follow(applied.folder.parents[1], applied.environment, f"{written} > {rendered}")
    objects = [item for item in yaml.safe_load_all(rendered.read_text()) if item]

    roles = {role["arn"]: role for role in applied.resources("aws_iam_role")}
    accounts = {
        item["metadata"]["name"]: item["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        for item in objects
        if item["kind"] == "ServiceAccount" and item["metadata"].get("annotations")
    }
    assert set(accounts) == {"everloop-ingest", "everloop-trainer", "everloop-mlflow"}
    for account, arn in accounts.items():
        (trust,) = json.loads(roles[arn]["assume_role_policy"])["Statement"]
        told = {
            key.split(":")[-1]: value for key, value in trust["Condition"]["StringEquals"].items()
        }
        assert told == {
            "sub": f"system:serviceaccount:everloop:{account}",
            "aud": "sts.amazonaws.com",
        }
    assert "111122223333" not in json.dumps(applied.helm_values())
    # Every example of an account in the chart's own values is replaced.
    shown = json.dumps([item for item in objects if item["kind"] != "Ingress"])
    assert "111122223333" not in shown and "everloop.example" not in shown


NETWORK = """
import boto3, json
ec2 = boto3.client("ec2")
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
subnets = [
    ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{i}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
    for i, zone in enumerate(("eu-central-1a", "eu-central-1b"))
]
print(json.dumps([vpc, subnets]))
"""


@pytest.mark.parametrize("runs_on", ["lambda", "ecs", "ec2"])
def test_one_model_is_put_where_it_is_to_run(runs_on: str, moto: Path, tmp_path: Path) -> None:
    with aws(moto, tmp_path) as environment:
        made = subprocess.run(
            [moto, "-c", NETWORK], env=environment, capture_output=True, text=True, check=True
        )
        vpc, subnets = json.loads(made.stdout)
        commands = STATE + MODEL.replace("runs_on=ecs", f"runs_on={runs_on}")
        commands = commands.replace("vpc-0123", vpc)
        for example, subnet in zip(("subnet-01", "subnet-02"), subnets, strict=True):
            commands = commands.replace(example, subnet)
        told = follow(tmp_path, environment, commands)
        root = Root("model", tmp_path / "terraform/model", told)
        root("plan", "-detailed-exitcode", "-input=false", "-no-color", expect=0)
        endpoint = json.loads(root("output", "-json", "endpoint"))
        assert endpoint.startswith("https://" if runs_on == "lambda" else "http://")
        pulled = {
            resource
            for policy in root.resources("aws_iam_role_policy")
            for statement in _statements(policy["policy"])
            if "ecr:BatchGetImage" in statement["Action"]
            for resource in statement["Resource"]
        }
        models = "arn:aws:ecr:eu-central-1:123456789012:repository/everloop-dev/flight-delays"
        assert pulled == (set() if runs_on == "lambda" else {models})
