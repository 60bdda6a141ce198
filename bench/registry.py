"""Reads and promotions of the registry gateway, beside a plain MLflow client that asks the same MLflow server.

Both ask what serves, and both let two versions serve in turn. The plain client moves an alias and no more; the gateway
also compares and sets, verifies the model's file, archives, writes the audit trail with its hash chain, and announces
the promotion on Kafka.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Any

from matplotlib.figure import Figure

from bench.report import OUT, Result, load_before, medians, write
from everloop import stack
from everloop.stack.endpoints import Endpoints
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2_grpc
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import ModelTrained
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError
from everloop_runtime.events import TRAININGS, encode, new_event
from everloop_runtime.kafka import producer

MODEL = "flight-delays"
PEER = "plain-client"
ROUNDS = 5
FILE = os.urandom(1_000_000)
"""What stands for a model's file: the gateway compares its digest before each promotion."""
PATIENCE_SECONDS = 120.0

Ask = Callable[[], Any]


def main() -> None:
    """Measures in rounds, ours and the client's in turn, on a stack of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of it; nothing is published")
    quick = parser.parse_args().quick
    reads, moves, rounds = (100, 10, 2) if quick else (500, 30, ROUNDS)
    load = load_before()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        stack.up(home, only=["registry_gateway", "s3"])
        try:
            found = compare(stack.load(home), reads, moves, rounds)
        finally:
            stack.down(home)
    figures: list[dict[str, float | str]] = [
        {"what": name, **figure_of(samples)}
        for pair in found.values()
        for name, samples in pair.items()
    ]
    ratios = {
        f"{kind}.vs_mlflow_client": round(ratio, 4)
        for kind, pair in found.items()
        for ratio in [rate_ratio(*pair.values())]
    }
    result = Result(
        "registry",
        "Reads and promotions of the registry gateway, beside a plain MLflow client",
        figures,
        ratios,
        f"One caller, {rounds} interleaved rounds. Both reach the same MLflow server, on SQLite. A ratio above 1 means "
        "that the gateway does more per second. The plain client only moves the alias: no gates, etag, audit or event, "
        "and no digest of the model's file, here 1 MB.",
        load,
    )
    OUT.mkdir(parents=True, exist_ok=True)
    write(result, plot(ratios), publish=not quick)


def compare(
    there: Endpoints, reads: int, moves: int, rounds: int
) -> dict[str, dict[str, list[list[float]]]]:
    """Seconds of each call by round, for the gateway and the plain client, by kind of call."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    from mlflow import MlflowClient

    client = MlflowClient(there.mlflow_uri, there.mlflow_uri)
    runs = [client.create_run(client.create_experiment(f"bench-{n}")).info.run_id for n in "ab"]
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "model.onnx")).write_bytes(FILE)
        for run in runs:
            client.log_artifact(run, str(file), "model")
    client.create_registered_model(PEER)
    for run in runs:
        client.create_model_version(PEER, f"s3://nowhere/{run}", run, await_creation_for=0)
    client.set_registered_model_alias(PEER, "production", "2")
    with channel(there.registry) as connection:
        gateway = registry_pb2_grpc.RegistryServiceStub(connection)
        announce(there.kafka_bootstrap, gateway, runs)
        ours, theirs = cycle((1, 2)), cycle((1, 2))
        asks: Mapping[str, tuple[int, Mapping[str, Ask]]] = {
            "read": (
                reads,
                {
                    "gateway: GetModelVersion": lambda: call(
                        gateway.GetModelVersion, pb.GetModelVersionRequest(model=MODEL), timeout=30
                    ),
                    "client: get_model_version_by_alias": lambda: client.get_model_version_by_alias(
                        PEER, "production"
                    ),
                },
            ),
            "promotion": (
                moves,
                {
                    "gateway: PromoteModelVersion": lambda: call(
                        gateway.PromoteModelVersion,
                        pb.PromoteModelVersionRequest(model=MODEL, version=next(ours)),
                        timeout=30,
                    ),
                    "client: set_registered_model_alias": lambda: client.set_registered_model_alias(
                        PEER, "production", str(next(theirs))
                    ),
                },
            ),
        }
        found: dict[str, dict[str, list[list[float]]]] = {
            kind: {name: [] for name in pair} for kind, (_, pair) in asks.items()
        }
        for _ in range(rounds):
            for kind, (calls, pair) in asks.items():
                for name, ask in pair.items():
                    found[kind][name].append([seconds(ask) for _ in range(calls)])
    return found


def announce(
    bootstrap: str, gateway: registry_pb2_grpc.RegistryServiceStub, runs: Sequence[str]
) -> None:
    """Has two versions registered and promoted, the second one in Production at the end."""
    publisher = producer(bootstrap)
    for number, run in enumerate(runs, start=1):
        trained = ModelTrained(
            pipeline=MODEL,
            training_id=f"bench-{number}",
            dataset_version=number,
            dataset_tag=f"{MODEL}/v{number}",
            run_id=run,
            model_uri=f"runs:/{run}/model",
            family="mlp",
            metrics={"roc_auc": 0.7 + number / 100},
            baseline_version=number - 1,
            baseline_metrics={"roc_auc": 0.7} if number > 1 else {},
            export_difference=1e-6,
            onnx_sha256=hashlib.sha256(FILE).hexdigest(),
        )
        key, value, headers = encode(new_event("bench", MODEL, trained))
        publisher.send(TRAININGS, key=key, value=value, headers=headers)
        publisher.flush()
        wait_for(gateway, number)
    publisher.close()


def wait_for(gateway: registry_pb2_grpc.RegistryServiceStub, version: int) -> None:
    """Returns when a version is in Production.

    Raises:
        TimeoutError: it is not there after `PATIENCE_SECONDS`.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            request = pb.GetModelVersionRequest(model=MODEL)
            if call(gateway.GetModelVersion, request, timeout=5).version.version == version:
                return
        except EverloopError:
            pass  # neither the model nor, at first, the service is there
        time.sleep(0.1)
    raise TimeoutError(f"version {version} of {MODEL} is not in Production")


def seconds(ask: Ask) -> float:
    """Time of one call."""
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


def figure_of(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Calls a second, and the 50th and 99th percentile in milliseconds: medians over rounds of seconds per call."""
    cuts = [quantiles(calls, n=100, method="inclusive") for calls in rounds]
    return {
        "calls": sum(len(calls) for calls in rounds),
        "per second": medians([len(calls) / sum(calls) for calls in rounds]),
        "p50 ms": medians([cut[49] * 1e3 for cut in cuts]),
        "p99 ms": medians([cut[98] * 1e3 for cut in cuts]),
    }


def rate_ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """How many of ours are done in the time of one of theirs: the median over rounds."""
    pairs = zip(ours, theirs, strict=True)
    return medians([(sum(b) / len(b)) / (sum(a) / len(a)) for a, b in pairs])


def plot(ratios: Mapping[str, float]) -> Figure:
    """Draws the ratios as bars."""
    figure = Figure(figsize=(7, 1.5))
    axes = figure.subplots()
    axes.barh(list(ratios)[::-1], list(ratios.values())[::-1], color="#4c86a8")
    axes.axvline(1.0, color="#8a97a3", linewidth=1)
    axes.set_xlabel("calls of the gateway in the time of one of the plain client")
    return figure


if __name__ == "__main__":
    main()
