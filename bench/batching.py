"""What a request costs in the serving core when the requests of a turn run together, and when each runs by itself.

Callers in a closed loop ask the core as a door does, with rows as JSON gives them; the prediction log is on and a
broker takes everything. Processor time of the whole process counts, because others may be at work on the machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from matplotlib.figure import Figure

from bench.flights_model import fitted, taught
from bench.report import Result, load_before, medians, write
from everloop_features import inputs_of
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.domain import Call, ServingPolicy, Wanted
from everloop_inference.fakes import Artifact, MemoryArtifacts
from everloop_inference.log.prediction_log import PredictionLog
from everloop_inference.log.spill import Spill
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.ports import Message, Outcome
from everloop_inference.predict import Predictor

FAMILY = "hist_gradient_boosting"
ROWS = (1, 64)
CALLERS = (1, 8, 32, 128)
REPEATS = 7
SECONDS = 0.3
GOLDEN_ROWS = 32
ASKED_ROWS = 4096

Rows = Sequence[Mapping[str, Any]]


class Broker:
    """Takes everything at once."""

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See `ports.LogSink`."""
        return [Outcome.STORED] * len(messages)

    def close(self) -> None:
        """See `ports.LogSink`."""


def main() -> None:
    """Measures every number of callers and rows, together and alone in turn."""
    load = load_before()
    artifact, rows = subject()
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        together = core(Path(folder, "together"), artifact, ServingPolicy())
        alone = core(Path(folder, "alone"), artifact, ServingPolicy(batch_rows=1))
        for size in ROWS:
            for callers in CALLERS:
                pairs = [
                    tuple(
                        cost(predictor, rows, size, callers) for predictor, _ in (together, alone)
                    )
                    for _ in range(REPEATS)
                ]
                figures.append(
                    {
                        "rows": size,
                        "callers": callers,
                        "together µs": medians([pair[0] * 1e6 for pair in pairs]),
                        "alone µs": medians([pair[1] * 1e6 for pair in pairs]),
                    }
                )
                ratios[f"{size}.c{callers}.vs_alone"] = medians([b / a for a, b in pairs])
        for _, log in (together, alone):
            log.close()
    title = "A request to the serving core, run with those of its turn or by itself"
    note = (
        "Processor time per request, medians of interleaved repeats. A ratio above 1 means that running together is"
        " cheaper. The model is the flights' gradient boosting."
    )
    write(Result("batching", title, figures, ratios, note, load), plot(figures))


def subject() -> tuple[Artifact, Rows]:
    """The flights' model as the trainer logs it, and rows to ask about."""
    sample = taught()
    family, model, graph = fitted(sample, FAMILY)
    matrix = sample.features.transform(sample.feeds, family.encoding)[:GOLDEN_ROWS]
    manifest: dict[str, object] = {
        "task": "binary",
        "classes": ["false", "true"],
        "inputs": [spec.to_json() for spec in inputs_of(sample.pipeline)],
    }
    golden: dict[str, object] = {
        "rows": sample.rows[:GOLDEN_ROWS],
        "probabilities": family.predict(sample.problem, model, matrix).tolist(),
    }
    content = graph.SerializeToString()
    return Artifact(content, manifest, golden), sample.rows[GOLDEN_ROWS:ASKED_ROWS]


def core(
    folder: Path, artifact: Artifact, policy: ServingPolicy
) -> tuple[Predictor, PredictionLog]:
    """A serving core with its log."""
    artifacts, models = MemoryArtifacts(), Models()
    artifacts.runs["run"] = artifact
    wanted = Wanted("flights", 1, "run", artifact.sha256)
    policy = dataclasses.replace(policy, id_field="flight_id")
    models.swap(Loader(artifacts, LocalEngines(), folder / "cache").load(wanted, policy))
    log = PredictionLog(
        Broker(),
        Spill(folder / "spill", "bench", 1 << 30),
        batch_rows=500,
        batch_seconds=0.5,
        buffer_bytes=1 << 27,
        retry_seconds=1.0,
    )
    log.start()
    return Predictor(models, log, "bench"), log


def cost(predictor: Predictor, rows: Rows, size: int, callers: int) -> float:
    """Processor seconds per request, over requests that fill `SECONDS`."""
    count = 0

    async def caller(number: int, end: float) -> None:
        nonlocal count
        first, now = number * size, 0.0
        while now < end:
            first = (first + size) % (len(rows) - size)
            now = time.perf_counter()
            await predictor.rows("flights", rows[first : first + size], Call(now, 300 * size))
            count += 1

    async def everybody() -> float:
        began = time.process_time()
        end = time.perf_counter() + SECONDS
        await asyncio.gather(*(caller(number, end) for number in range(callers)))
        return time.process_time() - began

    return uvloop.run(everybody()) / count


def plot(figures: Sequence[Mapping[str, float | str]]) -> Figure:
    """Draws processor time over callers, one picture per size."""
    figure = Figure(figsize=(8, 3))
    for axes, size in zip(figure.subplots(1, len(ROWS)), ROWS, strict=True):
        chosen = [row for row in figures if row["rows"] == size]
        for column, colour in (("together µs", "#4c86a8"), ("alone µs", "#c97b4a")):
            axes.plot(
                [str(row["callers"]) for row in chosen],
                [row[column] for row in chosen],
                marker="o",
                color=colour,
                label=column.removesuffix(" µs"),
            )
        axes.set_title(f"{size} row{'s' if size > 1 else ''} a request")
        axes.set_xlabel("callers")
        axes.set_ylabel("µs of processor")
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
