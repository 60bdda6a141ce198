"""What replicas and loaded models cost: Everloop as deployed, with 1 or 2 replicas and up to 100 models."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from bench.inference import ours
from bench.inference.doors import GRPC, native
from bench.inference.load import Load, missing_tools, over_grpc, over_http
from bench.inference.measure import Sample, sample, verified
from bench.inference.running import Running, ServerFailed, stop_in_order, wait_for_answer
from bench.inference.subject import MODEL, Subject, prepare
from bench.report import OUT, Result, load_before, medians, write

REPLICAS = (1, 2)
MODELS = (1, 10, 100)
CALLERS = 32
SAMPLES = 3
START_SECONDS = 180
LOOKS = 20

Row = dict[str, float | str]


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench.serving_scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one sample of 2 s a case")
    quick = parser.parse_args().quick
    if missing := missing_tools():
        print("\n".join(missing), file=sys.stderr)
        return 2
    stop_in_order()
    load = load_before()
    work = OUT / "inference"
    subject = prepare(work / "model")
    figures: list[Row] = []
    for replicas in REPLICAS:
        for models in MODELS:
            figures += _measure(subject, work, replicas, models, quick)
    ratios = _ratios(figures)
    write(
        Result(
            "serving-scale",
            "What replicas and loaded models cost",
            figures,
            ratios,
            f"Single rows from {CALLERS} callers, who share the cores with the replicas; over HTTP they ask all "
            "models in turn, over gRPC one of them. Every model is a session of its own on the same graph. Memory "
            "and CPU are of the whole process tree: Ray's head, the service process, the replicas.",
            load,
        ),
        _plot(figures),
        publish=not quick,
    )
    return int(any(row["errors"] for row in figures))


def _measure(subject: Subject, work: Path, replicas: int, models: int, quick: bool) -> list[Row]:
    names = [MODEL, *(f"{MODEL}-{number}" for number in range(2, models + 1))]
    print(f"{replicas} replica(s), {models} model(s)", flush=True)
    with tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as home:
        began = time.monotonic()
        with ours.started(subject, Path(home), names, replicas) as running:
            wait_for_answer(running, native(), native().body(subject, 1), START_SECONDS)
            _wait_for_models(running, models)
            ready = time.monotonic() - began
            rows: list[Row] = []
            for door, load in _loads(running, subject, names).items():
                seen = [
                    sample(running, load, 2 if quick else 4) for _ in range(1 if quick else SAMPLES)
                ]
                print(f"  {door:5} {seen[-1]}", flush=True)
                rows.append(_row(replicas, models, door, seen))
            memory = medians([running.memory() / 2**20])
    return [{**row, "memory MiB": memory, "ready after s": round(ready, 1)} for row in rows]


def _loads(
    running: Running, subject: Subject, names: list[str]
) -> dict[str, Callable[[int], Load]]:
    paths = [f"/v1/models/{name}:predict" for name in names]
    rows, _ = verified(running, native(), subject, 1)
    tensors, answer = verified(running, GRPC, subject, 1)
    return {
        "http": lambda seconds: over_http(running.http, paths, rows, CALLERS, seconds),
        "grpc": lambda seconds: over_grpc(
            running.grpc, GRPC.path, tensors, len(answer), CALLERS, seconds
        ),
    }


def _wait_for_models(running: Running, models: int) -> None:
    """Returns when every replica serves all of them: the kernel gives each new connection to any replica."""
    deadline = time.monotonic() + START_SECONDS
    looks = 0
    while looks < LOOKS:
        connection = http.client.HTTPConnection(running.http, timeout=10)
        connection.request("GET", "/v1/models")
        served = len(json.loads(connection.getresponse().read())["models"])
        connection.close()
        looks = looks + 1 if served == models else 0
        if time.monotonic() > deadline:
            raise ServerFailed(f"{served} of {models} models are served")
        time.sleep(0.05)


def _row(replicas: int, models: int, door: str, seen: list[Sample]) -> Row:
    return {
        "replicas": replicas,
        "models": models,
        "door": door,
        "requests/s": medians([one.throughput for one in seen]),
        "p50 ms": medians([one.p50 for one in seen]),
        "p99 ms": medians([one.p99 for one in seen]),
        "CPU µs": medians([one.cpu for one in seen]),
        "errors": sum(one.errors for one in seen),
    }


def _ratios(figures: list[Row]) -> dict[str, float]:
    """What more costs, as times of one replica with one model."""
    by_case = {(row["door"], row["replicas"], row["models"]): row for row in figures}
    ratios = {}
    for (door, replicas, models), row in by_case.items():
        if (replicas, models) != (1, 1):
            one = by_case[door, 1, 1]
            for what, column in (
                ("throughput", "requests/s"),
                ("cpu", "CPU µs"),
                ("memory", "memory MiB"),
            ):
                key = f"{door}.replicas{replicas}.models{models}.{what}_vs_one"
                ratios[key] = float(f"{float(row[column]) / float(one[column]):.4g}")
    return ratios


def _plot(figures: list[Row]) -> Figure:
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    for axis, column in zip(
        figure.subplots(1, 4), ("requests/s", "p99 ms", "CPU µs", "memory MiB"), strict=True
    ):
        for replicas in REPLICAS:
            for door in ("http", "grpc"):
                values = [
                    float(row[column])
                    for row in figures
                    if row["replicas"] == replicas and row["door"] == door
                ]
                axis.plot(MODELS, values, "o-", label=f"{door}, {replicas} replica(s)")
        axis.set_xscale("log")
        axis.set_xticks(MODELS, [str(count) for count in MODELS])
        axis.set_xlabel("models loaded", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_title(column, fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ServerFailed as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
