"""The steps of the demo, in order."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape

from everloop import stack
from everloop.client import Everloop
from everloop.demo import evaluate, flights, lineage, producer, results, slices, tensors
from everloop.demo.events import EventLog, Seen
from everloop.demo.feed import Feed
from everloop.demo.memory import MemoryWatch
from everloop.demo.run import Run, StepFailed
from everloop.demo.screen import Bar
from everloop.demo.summary import chain_gaps
from everloop.demo.traffic import Traffic
from everloop.errors import EverloopError
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.everloop.training.v1 import training_pb2

__all__ = ["STEPS", "Step"]

FIRST_MONTHS = 2
SLOW_SECONDS = 900
"""How long a machine may take to train a model that has other work to do."""
MONTHS = (
    "",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        title: What happens, for a person.
        part: Part of the stack whose log tells most where it fails; None where no part is to blame.
        run: Does it.
    """

    title: str
    part: str | None
    run: Callable[[Run], None]


def start_stack(run: Run) -> None:
    """Starts the stack with a copy of the pipeline, and reads the flights meanwhile."""
    run.pipeline = slices.write_pipeline(run.pipelines, run.home / "pipelines", run.slice)
    run.memory = MemoryWatch(run.home)
    run.memory.start()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(flights.load, run.slice.days_per_month)
        run.endpoints = stack.up(
            run.home, lambda event: _tell_part(run, event), pipelines=run.home / "pipelines"
        )
        run.flights = reading.result()
    run.columns = tensors.columns_of(run.flights, run.pipeline)
    run.first = int(np.searchsorted(run.flights.month, FIRST_MONTHS, side="right"))
    run.client = Everloop.connect(run.home)
    run.events = EventLog(run.endpoints.kafka_bootstrap, run.screen.line)
    run.events.start()
    there = run.endpoints
    for name, where in (
        ("MLflow", there.mlflow_uri),
        ("predictions over HTTP", f"{there.inference_http_url}/v1/models/{run.name}:predict"),
        ("predictions over gRPC", there.inference_grpc),
        ("records (Kafka)", f"{there.kafka_bootstrap}, topic {run.pipeline.record_topic}"),
        ("metrics", ", ".join(f"http://{address}/metrics" for address in there.metrics.values())),
        ("logs", str(run.home / "logs")),
    ):
        run.screen.line(f"  [bold]{name}[/]  {where}")
    run.screen.line(
        f"  {len(run.flights):,} flights of 2013 are read; the first {run.first:,} teach the first model"
    )


def _tell_part(run: Run, event: stack.Event) -> None:
    if event.phase in ("healthy", "external", "preparing"):
        run.screen.line(
            f"  [dim]{run.screen.seconds:5.1f} s[/] {event.part} {event.phase}  [dim]{escape(event.text)}[/]"
        )


def push_first_months(run: Run) -> None:
    """A plain Kafka producer sends January and February, with broken records among them."""
    file = run.home / "first-months.jsonl"
    file.write_bytes(b"\n".join(run.flights.labelled_lines(run.first)) + b"\n")
    log = run.home / "logs" / "producer.log"
    command = [sys.executable, producer.__file__, str(file), "--key", run.pipeline.schema_.id]
    command += ["--bootstrap", run.endpoints.kafka_bootstrap, "--topic", run.pipeline.record_topic]
    expected = run.first + run.first // producer.BREAK_EVERY
    with log.open("wb") as errors, run.screen.bar("records sent", expected) as bar:
        run.producer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert run.producer.stdout is not None
        for line in run.producer.stdout:
            said = json.loads(line)
            run.produced, run.broken = said["sent"], said.get("broken", {})
            bar.to(run.produced)
        if run.producer.wait():
            raise StepFailed(
                f"the producer failed: {log.read_text(errors='replace').strip()[-300:]}"
            )
    run.screen.line(
        f"  {run.produced:,} records sent by plain kafka-python, {sum(run.broken.values())} of them broken"
        f" on purpose ({', '.join(f'{count} {kind}' for kind, count in run.broken.items())})"
    )
    with run.screen.bar("records settled by ingest", run.produced) as bar:
        _settled(run, run.produced, bar)
    stats = run.client.stats(run.name)
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(stats.rejected_by_reason.items()))
    run.screen.line(f"  {stats.accepted:,} accepted, {stats.rejected:,} rejected: {reasons}")


def _settled(run: Run, sent: int, bar: Bar) -> None:
    """Waits until ingest has settled so many records."""

    def ready() -> bool:
        stats = run.client.stats(run.name)
        bar.to(stats.received)
        return stats.received >= sent and stats.lag == 0

    run.wait(f"ingest settling {sent:,} records", 120, ready)


def train_first_model(run: Run) -> None:
    """A dataset version is cut, the trainer searches, the gates speak, and the first model serves."""
    run.client.cut(run.name, request_id="demo-first-months")
    with run.screen.bar("trials ended", 1) as bar:
        promoted = run.wait(
            "the first model's promotion",
            SLOW_SECONDS,
            lambda: _promotion(run, after=0),
            lambda: _show_training(run, bar),
        )
    run.old = promoted.data.version.version
    run.wait(f"inference serving v{run.old}", 60, lambda: _served(run) == run.old)
    run.screen.line(f"  v{run.old} answers")


def _served(run: Run) -> int:
    try:
        return run.client.served(run.name).version
    except EverloopError as error:
        if error.reason == "MODEL_NOT_FOUND":
            return 0
        raise


def _promotion(run: Run, after: int) -> Seen | None:
    """Returns the promotion of a newer version; a training or a gate that says no ends the wait."""
    for event in run.events.seen:
        if event.name == "TrainingFailed":
            raise StepFailed(f"the training failed: {event.data.error}", "trainer")
        if event.name == "ModelRegistered" and event.data.version.version > after:
            version = event.data.version
            if version.stage == registry_pb2.STAGE_REJECTED:
                said = "; ".join(gate.message for gate in version.gates if not gate.passed)
                raise StepFailed(
                    f"the gates refused v{version.version}: {said}", "registry_gateway"
                )
    return run.events.find("ModelPromoted", lambda event: event.data.version.version > after)


def _show_training(run: Run, bar: Bar) -> None:
    """Shows the training that is awaited: the retraining, once there is a model, and not the one before it."""
    for training in run.client.trainings(run.name, limit=1):
        if run.old and training.cause != training_pb2.CAUSE_DRIFT:
            continue
        state = training_pb2.Training.State.Name(training.state).removeprefix("STATE_").lower()
        if training.state == training_pb2.Training.STATE_RUNNING:
            searches = training.trials_done < training.trials_total
            state = "searching" if searches else "evaluating and logging the best"
        best = (
            f", best {training.best_family} {training.best_metric:.4f}"
            if training.best_family
            else ""
        )
        bar.to(training.trials_done, f"{state}{best}", total=training.trials_total or 1)


def meet_drift(run: Run) -> None:
    """The following months: predictions are asked for and labels follow, until the monitor wants a new model."""
    run.traffic = Traffic(
        run.flights, run.columns, run.first, run.client.addresses, run.name, rate=run.rate
    )
    run.feed = Feed(
        run.flights,
        run.first,
        lambda: run.traffic.position,
        run.client,
        run.name,
        run.pipeline.record_topic,
        run.endpoints.kafka_bootstrap,
    )
    run.traffic.sparing = True
    run.traffic.start()
    run.feed.start()
    with _replay(run) as tick:
        run.wait(
            "a request to retrain",
            len(run.flights) / run.rate + SLOW_SECONDS,
            lambda: run.events.find("RetrainRequested"),
            _before_the_year_ends(run, "the monitor asked for a retrain", tick),
        )


def retrain_under_traffic(run: Run) -> None:
    """The trainer trains on all data so far; the new version passes the gates and takes over while clients ask."""
    with _replay(run) as tick, run.screen.bar("trials ended", 1) as bar:
        shown = 0.0

        def both() -> None:
            nonlocal shown
            tick()
            if time.monotonic() - shown > 1.0:
                shown = time.monotonic()
                _show_training(run, bar)

        promoted = run.wait(
            "the promotion of a new model",
            SLOW_SECONDS,
            lambda: _promotion(run, after=run.old),
            _before_the_year_ends(run, "a new model was promoted", both),
        )
        run.new = promoted.data.version.version
        run.wait(
            f"v{run.new} answering clients",
            60,
            lambda: run.new in run.traffic.tally.first,
            _before_the_year_ends(run, f"v{run.new} answered", tick),
        )
    run.traffic.sparing = False
    first = run.traffic.tally.first[run.new]
    month = MONTHS[run.flights.month[first.row]]
    run.screen.line(f"  v{run.new} answers clients since {month} of the replay")


def finish_the_year(run: Run) -> None:
    """The rest of the year with the new version; then every label, and ingest's books to the last record."""
    with _replay(run) as tick:
        run.wait(
            "the end of the year",
            len(run.flights) / run.rate + 120,
            lambda: run.traffic.finished,
            tick,
        )
    run.check()
    run.feed.end_of_year()
    run.wait("the last labels", 120, lambda: run.feed.finished)
    run.check()
    sent = run.produced + run.feed.records_sent + run.feed.labels_sent
    with run.screen.bar("records settled by ingest", sent) as bar:
        _settled(run, sent, bar)
    tally = run.traffic.tally
    run.screen.line(f"  {tally.sent:,} predictions asked for, {tally.failed:,} failed")


def _before_the_year_ends(run: Run, what: str, tick: Callable[[], None]) -> Callable[[], None]:
    """Adds to a tick: with no flight left to ask about, there is nothing left to wait for."""

    def checked() -> None:
        if run.traffic.finished:
            raise StepFailed(f"the year ended before {what}")
        tick()

    return checked


@contextmanager
def _replay(run: Run) -> Iterator[Callable[[], None]]:
    """Shows how far the replay is; yields what moves the bar."""
    total = len(run.flights) - run.first
    with run.screen.bar("flights replayed", total) as bar:

        def tick() -> None:
            tally, position = run.traffic.tally, run.traffic.position
            month = MONTHS[run.flights.month[max(position - 1, 0)]]
            newest = f"v{max(tally.first)} answers" if tally.first else "no answer yet"
            note = f"{month}, {newest}, {tally.failed} failed"
            if run.traffic.pace < 1:
                note += ", slower: the rest of the year waits for the new model"
            bar.to(position - run.first, note)

        yield tick


def compare_versions(run: Run) -> None:
    """Both versions, loaded by a stock MLflow client, on the flights that neither has learned from."""
    dataset = run.client.dataset(run.name, run.client.model(run.name, run.new).dataset_version)
    learned = int(
        np.searchsorted(run.flights.departs, dataset.last_event_time.seconds, side="right")
    )
    if learned >= len(run.flights):
        raise StepFailed("no flight is newer than what the new version has learned from")
    versions = (run.old, run.new)
    scores = [
        evaluate.load_stock(run.endpoints.mlflow_uri, run.name, version, run.columns)
        for version in versions
    ]
    run.comparison = evaluate.compare(
        run.flights, run.first, learned, versions, (scores[0], scores[1])
    )


def follow_a_prediction(run: Run) -> None:
    """One prediction of the new version, back to the tag in git."""
    prediction_id = run.traffic.tally.ids[run.new]

    def logged() -> bool:
        try:
            return bool(run.client.logged(prediction_id).prediction_id)
        except EverloopError as error:
            if error.reason == "PREDICTION_NOT_FOUND":
                return False
            raise

    run.wait(f"the log of prediction {prediction_id}", 60, logged)
    found = run.client.trace(prediction_id)
    try:
        tag = lineage.look_up_tag(found.dataset.git_url, found.dataset.git_tag)
    except LookupError as error:
        raise StepFailed(f"the dataset version is not in git: {error}", "ingest") from error
    if tag.commit != found.dataset.git_commit:
        raise StepFailed(
            f"tag {tag.tag} is commit {tag.commit}, not {found.dataset.git_commit}", "ingest"
        )
    promoted = run.wait("the promotion's event", 10, lambda: _promotion(run, after=run.old))
    chain = lineage.causes(run.events, promoted)
    run.causation_gaps = chain_gaps(run.events, promoted, chain)
    if found.dataset.data.md5 not in tag.md5.values():
        run.causation_gaps.append(
            f"{tag.tag} tracks {tag.md5}, not {found.dataset.data.path} {found.dataset.data.md5}"
        )
    run.lineage = lineage.lineage_of(found, tag, chain)


def sum_up(run: Run) -> None:
    """Writes `summary.json` and `report.html` and prints what they say."""
    results.write(run)


STEPS = (
    Step("Start the stack", None, start_stack),
    Step("January and February go in through Kafka", "ingest", push_first_months),
    Step(
        "Cut a dataset version, train, promote and serve the first model",
        "trainer",
        train_first_model,
    ),
    Step("Replay the following months until the monitor finds drift", "monitor", meet_drift),
    Step("Retrain and swap the model under traffic", "trainer", retrain_under_traffic),
    Step("Finish the year with the new model", "inference", finish_the_year),
    Step("Compare the old model with the new one", "mlflow", compare_versions),
    Step("Follow a prediction back to its data", "monitor", follow_a_prediction),
    Step("Sum up", None, sum_up),
)


def log_of(home: Path, part: str) -> Path:
    """Returns the log of a part."""
    return home / "logs" / f"{part}.log"
