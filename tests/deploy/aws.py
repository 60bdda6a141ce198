"""Runs a stand-in of the AWS API on a port of loopback: moto, and the few operations it lacks or answers otherwise.

Started by `test_terraform.py` with the Python of an environment that holds moto: `python aws.py PORT`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from moto.awslambda.models import LambdaFunction
from moto.ec2.models import ec2_backends
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ec2.models.instances import Instance
from moto.ec2.models.launch_templates import LaunchTemplateVersion
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.models.vpcs import VPCEndPoint
from moto.ecs.models import Service as EcsService
from moto.eks import models as eks
from moto.iam.access_control import PermissionResult
from moto.kafka.models import FakeKafkaCluster
from moto.rds import models as rds
from moto.s3.models import FakeBucket
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

NOW = "2026-01-01T00:00:00Z"
Json = dict[str, Any]


def addon(cluster: str, name: str, body: Json) -> Json:
    return {
        "addon": {
            **body,
            "clusterName": cluster,
            "addonArn": f"arn:aws:eks:eu-central-1:123456789012:addon/{cluster}/{name}/1",
            "addonVersion": "v1.0.0-eksbuild.1",
            "status": "ACTIVE",
            "createdAt": 1,
            "modifiedAt": 1,
        }
    }


def access_entry(cluster: str, name: str, body: Json) -> Json:
    arn = f"arn:aws:eks:eu-central-1:123456789012:access-entry/{cluster}/1"
    kept = {"clusterName": cluster, "accessEntryArn": arn, "type": "STANDARD", "createdAt": 1}
    return {"accessEntry": {**body, **kept, "modifiedAt": 1, "kubernetesGroups": []}}


def configuration(name: str, body: Json) -> Json:
    arn = f"arn:aws:kafka:eu-central-1:123456789012:configuration/{name}/1"
    revision = {"revision": 1, "creationTime": NOW}
    return {**body, "arn": arn, "state": "ACTIVE", "latestRevision": revision, "creationTime": NOW}


class Lacking:
    """What moto lacks: add-ons and access entries of EKS, configurations and addresses of MSK."""

    def __init__(self) -> None:
        self.kept: dict[str, Json] = {}

    def answer(self, method: str, path: str, body: Json) -> Json | None:
        """The answer, or None where moto has one of its own."""
        if method == "GET" and (found := re.fullmatch(r"/v1/clusters/.+/bootstrap-brokers", path)):
            hosts = [f"b-{number}.everloop.kafka.example" for number in (1, 2, 3)]
            return {
                "bootstrapBrokerString": ",".join(f"{host}:9092" for host in hosts),
                "bootstrapBrokerStringTls": ",".join(f"{host}:9094" for host in hosts),
            }
        if found := re.fullmatch(r"/clusters/([^/]+)/addons(?:/(.+))?", path):
            if method == "POST":
                path = f"{path}/{body['addonName']}"
                self.kept[path] = addon(found[1], body["addonName"], body)
            return self._kept(method, path)
        if found := re.fullmatch(r"/clusters/[^/]+/access-entries/.+/access-policies(/.+)?", path):
            key = path.removesuffix(found[1] or "")
            policies = self.kept.setdefault(key, {"associatedAccessPolicies": []})
            if method == "POST":
                policies["associatedAccessPolicies"] = [{**body, "associatedAt": 1}]
                return {"associatedAccessPolicy": {**body, "associatedAt": 1}}
            return policies
        if found := re.fullmatch(r"/clusters/([^/]+)/access-entries(?:/(.+))?", path):
            if method == "POST":
                path = f"{path}/{body['principalArn']}"
                self.kept[path] = access_entry(found[1], body["principalArn"], body)
            return self._kept(method, path)
        if found := re.fullmatch(r"/v1/configurations(?:/(.+?)(/revisions/1)?)?", path):
            if method == "POST":
                made = configuration(body["name"], body)
                self.kept[f"/v1/configurations/{made['arn']}"] = made
                return made
            answer = self._kept(method, path.removesuffix("/revisions/1"))
            return {**answer, "revision": 1} if found[2] else answer
        return None

    def _kept(self, method: str, path: str) -> Json:
        return self.kept.pop(path, {}) if method == "DELETE" else self.kept.get(path, {})


class StandIn:
    """A WSGI application in front of moto's."""

    def __init__(self, moto: Callable[..., Iterable[bytes]]) -> None:
        self._moto, self._lacking = moto, Lacking()
        self._scaling_tags: Json = {"Tags": {}}

    def __call__(self, environ: Json, start_response: Callable[..., Any]) -> Iterable[bytes]:
        signed = environ.get("HTTP_AUTHORIZATION", "")
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith("AnyScaleFrontendService."):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            told = json.loads(body)
            self._scaling_tags |= {"Tags": told["Tags"]} if told.get("Tags") else {}
            if environ["HTTP_X_AMZ_TARGET"].endswith("ListTagsForResource"):  # moto lacks it
                start_response("200 OK", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps(self._scaling_tags).encode()]
            environ["wsgi.input"] = BytesIO(body)
        if re.search(r"/(eks|kafka)/aws4_request", signed):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            path = environ["PATH_INFO"]
            answer = self._lacking.answer(
                environ["REQUEST_METHOD"], path, json.loads(body) if body[:1] == b"{" else {}
            )
            if answer is not None:
                status = "200 OK" if answer else "404 Not Found"
                headers = [("Content-Type", "application/json")]
                if not answer:
                    headers.append(("X-Amzn-ErrorType", "ResourceNotFoundException"))
                start_response(status, headers)
                return [json.dumps(answer).encode()]
            environ["wsgi.input"] = BytesIO(body)
        return self._moto(environ, start_response)


def after(owner: type, then: Callable[[Any, Json], None]) -> None:
    """Has `then` mend each object that a class of moto makes; it gets the arguments that came by name."""
    made = owner.__init__

    def mended(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        then(self, kwargs)

    owner.__init__ = mended  # type: ignore[misc]


def mend_moto() -> None:
    """What moto forgets of what it was told, or invents: a second plan would find it changed."""
    eks.DEFAULT_REMOTE_ACCESS = None  # an SSH key on every node group
    after(eks.Cluster, complete_cluster)
    after(eks.Nodegroup, lambda it, _: setattr(it, "update_config", {"maxUnavailable": 1}))
    after(FakeKafkaCluster, lambda it, _: setattr(it, "state", "ACTIVE"))  # CREATING for ever
    after(LaunchTemplateVersion, forget_tags_of_the_template)
    after(rds.DBInstance, remember_monitoring)
    after(VPCEndPoint, remember_names)
    after(Instance, lambda it, _: setattr(it, "security_groups", it.nics[0].group_set))
    associated = NetworkInterface.association.fget  # an empty one means a public address
    NetworkInterface.association = property(lambda it: associated(it) or None)
    SecurityGroupRule.description = property(  # type: ignore[assignment]
        lambda rule: {**rule.ip_range, **rule.source_group}.get("Description")
    )
    # It reads no conditions: what is denied without TLS it would deny to all.
    FakeBucket.get_permission = lambda *_: PermissionResult.NEUTRAL
    after(EcsService, lambda it, _: setattr(it, "availability_zone_rebalancing", "ENABLED"))
    described = LambdaFunction.get_configuration
    LambdaFunction.get_configuration = lambda self, *args, **kwargs: {  # type: ignore[method-assign]
        name: value
        for name, value in described(self, *args, **kwargs).items()
        if name != "ImageConfigResponse"  # of which nobody told it
    }
    update = rds.DBParameterGroup.update_parameters
    rds.DBParameterGroup.update_parameters = lambda self, new: update(
        self, [{**parameter, "Source": "user"} for parameter in new]
    )


def complete_cluster(cluster: eks.Cluster, told: Json) -> None:
    ec2 = ec2_backends[told["account_id"]][told["region_name"]]
    vpc = ec2.get_subnet(told["resources_vpc_config"]["subnetIds"][0]).vpc_id
    group = ec2.create_security_group(f"eks-{cluster.name}", "of the cluster", vpc_id=vpc)
    cluster.resources_vpc_config |= {"clusterSecurityGroupId": group.id, "vpcId": vpc}
    cluster.access_config = {"authenticationMode": "API"}


def forget_tags_of_the_template(version: LaunchTemplateVersion, told: Json) -> None:
    specifications = version.data.get("TagSpecifications", [])
    version.data["TagSpecifications"] = [
        it for it in specifications if it["ResourceType"] != "launch-template"
    ]


def remember_names(endpoint: VPCEndPoint, told: Json) -> None:
    if endpoint.service_name.endswith(".s3"):
        endpoint.dns_options = {"PrivateDnsOnlyForInboundResolverEndpoint": False}


def remember_monitoring(database: rds.DBInstance, told: Json) -> None:
    for name in ("monitoring_interval", "monitoring_role_arn"):
        setattr(database, name, told.get(name))
    database.performance_insights_enabled = told.get("enable_performance_insights")
    database.performance_insights_kms_key_id = told.get("performance_insights_kms_key_id")


def main() -> None:
    mend_moto()
    application = StandIn(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True)


if __name__ == "__main__":
    main()
