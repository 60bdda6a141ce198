"""The OpenAPI document says what the replica answers, everywhere and exactly."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from everloop_inference.fakes import ROW, sample_artifact

TENSORS = {
    "id": "7",
    "inputs": [
        {"name": name, "datatype": datatype, "shape": [1], "data": [ROW[name]]}
        for name, datatype in (
            ("carrier", "BYTES"),
            ("distance", "FP64"),
            ("stops", "INT64"),
            ("departs", "BYTES"),
        )
    ],
}
BODIES: dict[str, Any] = {
    "predict": {"rows": [ROW, {**ROW, "age": None}]},
    "explain": {"rows": [ROW]},
    "repositoryIndex": {},
    "infer": TENSORS,
    "inferVersion": TENSORS,
}


class Server:
    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address, timeout=10)
        _, _, self.document = self.ask("GET", "/openapi.json")
        resource = DRAFT202012.create_resource(self.document)
        self.registry: Registry[Any] = Registry().with_resource("urn:everloop", resource)

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        content = body if isinstance(body, bytes) else json.dumps(body) if body else b""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, content if method == "POST" else None, named)
        answer = self.connection.getresponse()
        data = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        plain = found["content-type"] != "application/json"
        return answer.status, found, data.decode() if plain else json.loads(data)

    def check(
        self, path: str, method: str, answer: tuple[int, dict[str, str], Any]
    ) -> dict[str, Any]:
        """Compares an answer with what the document says; returns its response object."""
        status, headers, content = answer
        response = self.document["paths"][path][method]["responses"][str(status)]
        if "$ref" in response:
            response = self.document["components"]["responses"][response["$ref"].split("/")[-1]]
        kind = headers["content-type"].split(";")[0]
        schema = rooted(response["content"][kind]["schema"])
        validator = Draft202012Validator(
            schema, registry=self.registry, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        validator.validate(content)
        return dict(response)


def rooted(schema: Any) -> Any:
    """The schema, with references that hold outside of the document."""
    if isinstance(schema, list):
        return [rooted(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"urn:everloop{value}" if key == "$ref" else rooted(value)
        for key, value in schema.items()
    }


@pytest.fixture
def server(world: Any) -> Iterator[Server]:
    world.publish(1)
    for task in ("regression", "multiclass"):
        world.publish(1, sample_artifact(task=task), name=task)
    world.replica()
    server = Server(world.settings.http_address)
    yield server
    server.connection.close()


@pytest.mark.parametrize("model", ["flights", "regression", "multiclass"])
def test_every_operation_answers_as_the_document_says(server: Server, model: str) -> None:
    done = set()
    for path, item in server.document["paths"].items():
        for method, operation in item.items():
            if method == "parameters":
                continue
            url = path.format(model=model, version="1")
            body = BODIES[operation["operationId"]] if method == "post" else None
            answer = server.ask(method.upper(), url, body)
            assert answer[0] == 200, (url, answer[2])
            server.check(path, method, answer)
            if "404" in operation["responses"]:
                ghost = server.ask(method.upper(), path.format(model="ghost", version="1"), body)
                assert ghost[0] == 404
                server.check(path, method, ghost)
            done.add(operation["operationId"])
    assert len(done) == 17, "an operation came or went, or two share an id"


def test_refusals_answer_as_the_document_says(server: Server) -> None:
    path, url = "/v1/models/{model}:predict", "/v1/models/flights:predict"
    body = BODIES["predict"]
    for status, given, headers in (
        (422, {"rows": [{**ROW, "stops": 0.5}]}, {}),
        (422, {"rows": []}, {}),
        (504, body, {"grpc_timeout": "1n"}),
    ):
        answer = server.ask("POST", url, given, **headers)
        assert answer[0] == status
        server.check(path, "post", answer)


def test_the_body_that_is_too_large(server: Server) -> None:
    answer = server.ask("POST", "/v1/models/flights:predict", b" " * 200_001)
    assert answer[0] == 413
    server.check("/v1/models/{model}:predict", "post", answer)


def test_what_is_overloaded_and_what_fails(
    world: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = world.replicas[0].predictor
    path, url, body = "/v1/models/{model}:explain", "/v1/models/flights:explain", BODIES["explain"]
    monkeypatch.setattr(predictor._explainer, "_most_waiting", 0)
    answer = server.ask("POST", url, body)
    assert answer[0] == 429
    response = server.check(path, "post", answer)
    Draft202012Validator(response["headers"]["retry-after"]["schema"]).validate(
        int(answer[1]["retry-after"])
    )
    monkeypatch.setattr(predictor, "_explainer", None)
    answer = server.ask("POST", url, body)
    assert answer[0] == 500
    server.check(path, "post", answer)


def test_a_replica_that_drains_says_so(world: Any, server: Server) -> None:
    world.replicas[0]._listeners._app.draining = True
    answer = server.ask("GET", "/v2/health/ready")
    assert answer[0] == 503
    server.check("/v2/health/ready", "get", answer)


def test_a_document_that_says_something_else_is_noticed(server: Server) -> None:
    """The checks can fail."""
    answer = server.ask("GET", "/v1/models/flights")
    answer[2]["more"] = 1
    with pytest.raises(Exception, match="Additional properties"):
        server.check("/v1/models/{model}", "get", answer)


def test_the_examples_are_requests_as_the_document_has_them(server: Server) -> None:
    for item in server.document["paths"].values():
        for method, operation in item.items():
            if method == "post" and "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                Draft202012Validator(rooted(schema), registry=server.registry).validate(
                    BODIES[operation["operationId"]]
                )
