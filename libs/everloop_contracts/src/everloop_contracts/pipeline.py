"""The pipeline specification: what a user declares, checked at load with file, line and field.

A pipeline is one YAML file. Its models, here and in the modules that this one gathers, are the reference of every
key; unknown keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, HttpUrl, field_validator, model_validator

from everloop_contracts import yaml_file
from everloop_contracts.features import (
    BinsFeature,
    CategoryFeature,
    CrossFeature,
    DatePartFeature,
    Feature,
    NumberFeature,
    RatioFeature,
    TargetMeanFeature,
    accepts,
)
from everloop_contracts.metrics import LOWER_IS_BETTER, TASK_METRICS, Metric
from everloop_contracts.monitoring import (
    DriftMethods,
    DriftRule,
    Monitoring,
    PerformanceRule,
    QualityRule,
    QuietHours,
    Retrain,
)
from everloop_contracts.schema import NUMERIC, FieldSpec, FieldType, Schema, Target, Task
from everloop_contracts.spec import Duration, KeyPath, Misfit, Misfits, Spec, Window
from everloop_contracts.yaml_file import PipelineError

__all__ = [
    "LOWER_IS_BETTER",
    "TASK_METRICS",
    "Abort",
    "BetterThanProductionGate",
    "BinsFeature",
    "CategoryFeature",
    "Checks",
    "Costs",
    "CrossFeature",
    "DatePartFeature",
    "DriftMethods",
    "DriftRule",
    "ExportParityGate",
    "FairnessDifferenceGate",
    "Feature",
    "FieldSpec",
    "FieldType",
    "Gate",
    "LatencyBudgetGate",
    "Metric",
    "MetricCeilingGate",
    "MetricFloorGate",
    "Monitoring",
    "NumberFeature",
    "PerformanceRule",
    "Pipeline",
    "PipelineError",
    "QualityRule",
    "QuietHours",
    "RatioFeature",
    "Retrain",
    "Rollout",
    "SignatureGate",
    "SizeBudgetGate",
    "SliceCeilingGate",
    "SliceFloorGate",
    "TargetMeanFeature",
    "Task",
    "Triggers",
    "Webhook",
    "load_pipeline",
    "load_pipelines",
]

AuditAction = Literal[
    "registered",
    "staged",
    "approved",
    "rejected",
    "rollout_started",
    "rollout_aborted",
    "promoted",
    "rolled_back",
    "archived",
    "abandoned",
]
"""What can be done to a model version, as the registry's audit trail names it."""
NAME = re.compile(r"^[a-z][a-z0-9-]{0,62}$")


class Checks(Spec):
    """What puts a dataset version into quarantine instead of announcing it.

    Shares are those of the records that came since the last version that was announced, beside all that came before.
    """

    min_rows: int = Field(default=1, ge=0)
    """Rows that the version must have."""
    max_null_rise: float | None = Field(default=0.8, ge=0, le=1)
    """How much the share of nulls in a field may rise; not the target's, whose labels come late."""
    max_unseen: float | None = Field(default=0.9, ge=0, le=1)
    """Share of records whose value never came before, in a string field that the model reads."""
    min_sample: int = Field(default=1_000, ge=1)
    """Records, new ones and those before, below which no share is judged."""


class Cut(Spec):
    """When a dataset version is cut by itself; it can always be cut on request."""

    rows: int = Field(default=100_000, ge=1)
    """Accepted records since the last version."""
    age: Duration = timedelta(hours=24)
    """Time since the oldest record that is in no version yet."""
    checks: Checks = Checks()


class Search(Spec):
    """Budget of the search over model families."""

    trials: int = Field(default=8, ge=1, le=1000)
    concurrency: int = Field(default=2, ge=1, le=64)
    time_budget: Duration = timedelta(minutes=10)
    """No new trial starts after this long."""
    metric: Metric = "roc_auc"
    """What the best trial is best in; where not given, `roc_auc`, or `rmse` for regression."""
    folds: int = Field(default=1, ge=1, le=20)
    """Times a trial is judged, each time on newer rows by a model of those before them (cross-validation in time
    order); 1 judges it once, on the newest quarter."""
    early_stopping: bool = True
    """Stop trials that do worse than others at the same share of the work (ASHA)."""
    warm_start: bool = True
    """Try the best parameters of the version before first."""


class Holdout(Spec):
    """The newest rows by event time, kept from training to judge the model."""

    fraction: float = Field(default=0.2, gt=0, lt=0.9)


class Triggers(Spec):
    """What starts a training."""

    min_rows: int = Field(default=1_000, ge=1)
    """Labelled rows before the first training."""
    new_rows: int | None = Field(default=None, ge=1)
    """Labelled rows since the last training that start another; never where not given."""
    on_drift: bool = True
    """Train when the monitor asks for it."""


class Costs(Spec):
    """What a wrong answer of a binary model costs; a right one costs nothing."""

    false_positive: float = Field(default=1.0, gt=0)
    """Of an answer `true` where the truth is `false`, in any unit."""
    false_negative: float = Field(default=1.0, gt=0)
    """Of an answer `false` where the truth is `true`, in the same unit."""


class Training(Spec):
    """How models are made."""

    families: tuple[str, ...] = Field(min_length=1)
    search: Search = Search()
    holdout: Holdout = Holdout()
    window: Window = "all"
    """Rows to learn from: all so far, or the newest by event time."""
    triggers: Triggers = Triggers()
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: rows of every class weigh as much together as those of any other. Probabilities then are not those of
    the data; calibration brings them back."""
    calibration: Literal["none", "sigmoid", "isotonic"] = "none"
    """What makes the probabilities those of the data, fitted on rows that did not teach: a sigmoid of the log-odds, or
    any increasing curve, which takes some thousand rows."""
    costs: Costs | None = None
    """The answer `true` is given from the probability on that costs least; from one half where not given."""
    slices: tuple[str, ...] = ()
    """Text or boolean fields: the metrics are told for the rows of each of their values as well."""
    seed: int = 7


class MetricFloorGate(Spec):
    """The holdout metric reaches a value."""

    kind: Literal["metric_floor"]
    metric: Metric
    """One of which more is better."""
    min: float


class MetricCeilingGate(Spec):
    """The holdout metric stays below a value, or reaches it."""

    kind: Literal["metric_ceiling"]
    metric: Metric
    """One of which less is better."""
    max: float


class BetterThanProductionGate(Spec):
    """The holdout metric beats the Production version's on the same rows by a margin; passes if there is none."""

    kind: Literal["better_than_production"]
    metric: Metric
    margin: float = 0.0
    """How much better than Production's: more, or less for a metric of which less is better; may be negative."""
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    """Share of resamples of the holdout's rows, the same for both, in which it must be so much better: a paired
    bootstrap test. Not tested where not given."""


class ExportParityGate(Spec):
    """The ONNX export gives the model's own outputs on the golden rows."""

    kind: Literal["export_parity"]
    max_difference: float = Field(default=1e-4, ge=0)


class _SliceGate(Spec):
    metric: Metric
    field: str | None = None
    """One of `training.slices`; every one where not given."""
    min_rows: int = Field(default=100, ge=1)
    """Rows of the holdout below which a slice is not judged."""


class SliceFloorGate(_SliceGate):
    """The holdout metric reaches a value in every slice, not only over all rows."""

    kind: Literal["slice_floor"]
    min: float


class SliceCeilingGate(_SliceGate):
    """The holdout metric stays below a value, or reaches it, in every slice."""

    kind: Literal["slice_ceiling"]
    max: float


class FairnessDifferenceGate(_SliceGate):
    """The holdout metric differs by no more than so much between any two slices of a field."""

    kind: Literal["fairness_difference"]
    max_difference: float = Field(ge=0)


class LatencyBudgetGate(Spec):
    """The 99th percentile of the time that the model takes for one row, as the trainer measured it."""

    kind: Literal["latency_budget"]
    max_p99: Duration = Field(gt=timedelta(0))


class SizeBudgetGate(Spec):
    """The ONNX file is not larger than this."""

    kind: Literal["size_budget"]
    max_bytes: int = Field(ge=1)


class SignatureGate(Spec):
    """Whoever asks the Production version can ask this one in the same way; passes if there is none.

    Every input is there with its type, takes nulls where it took them, and new ones may be left out; the classes are
    the same, in the same order.
    """

    kind: Literal["signature"]


Gate = Annotated[
    MetricFloorGate
    | MetricCeilingGate
    | BetterThanProductionGate
    | ExportParityGate
    | SliceFloorGate
    | SliceCeilingGate
    | FairnessDifferenceGate
    | LatencyBudgetGate
    | SizeBudgetGate
    | SignatureGate,
    Field(discriminator="kind"),
]


class Abort(Spec):
    """What takes a version on trial back."""

    error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of its requests that may fail."""
    latency_ratio: float | None = Field(default=2.0, ge=1)
    """How many times the Production version's p99 latency its own may be; no bound where null."""
    performance: bool = True
    """Whether an alert of the monitor about its performance, estimated or realised, takes it back."""


class Rollout(Spec):
    """A trial on real requests, beside the version in Production."""

    strategy: Literal["canary", "shadow", "ab"]
    """`canary` answers a share of the requests, `shadow` predicts them unseen: both are promoted when they have baked.
    `ab` answers its share until a person decides."""
    percent: float = Field(default=10.0, gt=0, le=100)
    """Share of the requests that the new version gets."""
    key: str = ""
    """Field whose value decides: equal values always get the same version. Default: the record id."""
    bake: Duration = timedelta(minutes=30)
    """Time that a trial takes at least."""
    min_requests: int = Field(default=1_000, ge=1)
    """Requests that the new version must have seen before it is judged."""
    abort: Abort = Abort()


class Webhook(Spec):
    """Who is told what was done to the model's versions."""

    url: HttpUrl | None = None
    """Where it is posted; the gateway's setting `WEBHOOK_URL` where not given."""
    actions: tuple[AuditAction, ...] = (
        "staged",
        "approved",
        "rejected",
        "promoted",
        "rolled_back",
        "rollout_aborted",
    )
    """Actions of the audit trail that are told."""


class Promotion(Spec):
    """What a model must show before it serves."""

    approval: Literal["automatic", "manual"] = "automatic"
    """Whether what passed its gates goes on by itself, or waits for `everloop approve`."""
    webhook: Webhook = Webhook()
    gates: tuple[Gate, ...] = ()
    rollout: Rollout | None = None
    """How a version that passed its gates comes into Production where another one serves; at once where not given."""


class PredictionLog(Spec):
    """What inference writes down."""

    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of predictions that are logged."""
    redact: tuple[str, ...] = ()
    """Input fields whose values are kept out of the log: each is null there, and nobody watches its drift."""


class Batching(Spec):
    """How rows of several requests run together; nobody waits for a batch to fill."""

    target: Duration = Field(default=timedelta(milliseconds=5), gt=timedelta(0))
    """Time that the rows of a batch may add to a run: what a request may wait for its neighbours."""
    max_rows: int = Field(default=1024, ge=1, le=65536)
    """Rows that a batch may hold, unless one request brings more."""


class Pool(Spec):
    """Replicas that serve this model and no other; clients go on asking the address of all models."""

    min_replicas: int = Field(default=0, ge=0, le=256)
    """Replicas that are always there; with 0 there is none while nobody asks, and the first request waits for one."""
    max_replicas: int = Field(default=1, ge=1, le=256)
    """Replicas that there may be."""
    ongoing_requests: float = Field(default=16, ge=1)
    """Requests that one replica should have at a time; with more there come more replicas, with fewer they go."""
    idle: Duration = Field(default=timedelta(minutes=5), gt=timedelta(0))
    """Time without a request after which the last replica goes, where `min_replicas` is 0."""

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) cannot exceed max_replicas ({self.max_replicas})"
            )
        return self


class Serving(Spec):
    """How the model serves."""

    max_batch_rows: int = Field(default=4096, ge=1, le=65536)
    """Rows that one request may hold."""
    batch: Batching = Batching()
    log: PredictionLog = PredictionLog()
    pool: Pool | None = None
    """Where not given, the model is one of many in replicas that serve all of these."""


class Pipeline(Spec):
    """One pipeline, as its YAML file declares it."""

    name: str = Field(alias="pipeline")
    description: str = ""
    schema_: Schema = Field(alias="schema")
    target: Target
    features: dict[str, Feature] = Field(min_length=1)
    partitions: int = Field(default=6, ge=1, le=256)
    """Partitions of the pipeline's record topic."""
    cut: Cut = Cut()
    versioning: Literal["dvc", "git-lfs"] = "dvc"
    """What keeps the content of dataset versions: DVC on the object store, or Git LFS beside the history, for small
    data. A pipeline keeps what its first version was cut with."""
    training: Training
    promotion: Promotion = Promotion()
    serving: Serving = Serving()
    monitoring: Monitoring = Monitoring()

    @field_validator("name")
    @classmethod
    def _usable_name(cls, value: str) -> str:
        if not NAME.match(value):
            raise ValueError(
                "a name is lower-case letters, digits and dashes, and starts with a letter"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _defaults_fit_the_task(cls, document: Any) -> Any:
        """Gives the keys whose default depends on the task, where the document does not."""
        try:
            task = Task(document["target"]["task"])
        except (KeyError, TypeError, ValueError):
            return document  # what is wrong with it is told by the fields' own checks
        metric = TASK_METRICS[task][0]
        if "training" in document:
            document = _given(document, ("training", "search", "metric"), metric)
        document = _given(document, ("monitoring", "performance", "metric"), metric)
        if task is Task.MULTICLASS:
            document = _given(document, ("monitoring", "retrain", "when"), ("drift",))
        return document

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        if found := [
            *self._target_misfits(),
            *self._feature_misfits(),
            *self._metric_misfits(),
            *self._training_misfits(),
            *self._segment_misfits(),
            *self._redaction_misfits(),
            *self._rollout_misfits(),
        ]:
            raise Misfits(found)
        return self

    def _target_misfits(self) -> Iterator[Misfit]:
        where = ("target", "field")
        target = self.schema_.fields.get(self.target.field)
        if target is None:
            yield where, f"there is no field '{self.target.field}'"
            return
        wanted = {
            Task.BINARY: (FieldType.BOOL,),
            Task.MULTICLASS: (FieldType.STRING,),
            Task.REGRESSION: NUMERIC,
        }[self.target.task]
        if target.type not in wanted:
            yield where, f"a {self.target.task} target is of type {' or '.join(wanted)}"
        if not target.nullable:
            yield where, "the target must be nullable, labels may come late"

    def _feature_misfits(self) -> Iterator[Misfit]:
        fields = self.schema_.fields
        for name, feature in self.features.items():
            where = ("features", name)
            for source, accepted in accepts(feature).items():
                if source not in fields:
                    yield where, f"there is no field '{source}'"
                elif source in (self.target.field, self.schema_.id):
                    yield where, f"'{source}' is the target or the record id"
                elif fields[source].type not in accepted:
                    yield (
                        where,
                        f"a feature of kind {feature.kind} takes {' or '.join(accepted)} fields here,"
                        f" '{source}' is {fields[source].type}",
                    )

    def _metric_misfits(self) -> Iterator[Misfit]:
        task = self.target.task
        fitting = TASK_METRICS[task]
        named: list[tuple[KeyPath, Metric]] = [
            (("training", "search", "metric"), self.training.search.metric),
        ]
        watched = self.monitoring.performance.metric
        where: KeyPath = ("monitoring", "performance", "metric")
        if watched != "cost":
            named.append((where, watched))
        elif self.training.costs is None:
            yield where, "what answers cost is declared in training.costs"
        if watched != "cost" and self.monitoring.retrain.min_cost is not None:
            yield ("monitoring", "retrain", "min_cost"), "monitoring.performance.metric is not cost"
        for number, gate in enumerate(self.promotion.gates):
            if isinstance(
                gate, ExportParityGate | LatencyBudgetGate | SizeBudgetGate | SignatureGate
            ):
                continue
            where = ("promotion", "gates", number, "metric")
            named.append((where, gate.metric))
            lower = gate.metric in LOWER_IS_BETTER
            other = (
                gate.kind.replace("floor", "ceiling")
                if lower
                else gate.kind.replace("ceiling", "floor")
            )
            if gate.metric in fitting and other != gate.kind:
                better = "less" if lower else "more"
                yield where, f"{better} {gate.metric} is better: a {other} gate bounds it"
            if (
                isinstance(gate, _SliceGate)
                and gate.field
                and gate.field not in self.schema_.fields
            ):
                yield (*where[:-1], "field"), f"there is no field '{gate.field}'"
        for where, metric in named:
            if metric not in fitting:
                known = ", ".join(fitting)
                yield where, f"'{metric}' does not fit a {task} task; there are: {known}"
        if task is Task.MULTICLASS and any(
            "performance" in condition for condition in self.monitoring.retrain.when
        ):
            yield (
                ("monitoring", "retrain", "when"),
                "the performance of a multiclass task is not watched; there is: drift",
            )

    def _training_misfits(self) -> Iterator[Misfit]:
        training, task = self.training, self.target.task
        if task is Task.REGRESSION:
            for key in ("class_weights", "calibration"):
                if getattr(training, key) != "none":
                    yield ("training", key), "a regression task has no classes"
        if training.costs and task is not Task.BINARY:
            yield ("training", "costs"), f"a {task} task has no threshold that costs could set"
        yield from self._slice_misfits(("training", "slices"), training.slices)
        yield from self._slice_misfits(("monitoring", "segments"), self.monitoring.segments or ())

    def _slice_misfits(self, key: KeyPath, names: tuple[str, ...]) -> Iterator[Misfit]:
        for number, name in enumerate(names):
            where = (*key, number)
            field = self.schema_.fields.get(name)
            if field is None:
                yield where, f"there is no field '{name}'"
            elif name in (self.schema_.id, self.target.field):
                yield where, f"'{name}' is the target or the record id"
            elif field.type not in (FieldType.STRING, FieldType.BOOL):
                yield where, f"{key[-1]} are by string or bool fields, '{name}' is {field.type}"

    def _segment_misfits(self) -> Iterator[Misfit]:
        segments = self.monitoring.segments or ()
        for number, name in enumerate(segments):
            where = ("monitoring", "segments", number)
            if name in self.schema_.fields and name not in self.inputs:
                yield where, f"'{name}' is no input of the model, and not in the prediction log"

    def _redaction_misfits(self) -> Iterator[Misfit]:
        inputs = self.inputs
        for number, name in enumerate(self.serving.log.redact):
            if name not in inputs:
                yield ("serving", "log", "redact", number), f"'{name}' is no input of the model"

    def _rollout_misfits(self) -> Iterator[Misfit]:
        rollout = self.promotion.rollout
        if rollout and rollout.key and rollout.key not in self.schema_.fields:
            yield ("promotion", "rollout", "key"), f"there is no field '{rollout.key}'"

    @property
    def inputs(self) -> dict[str, FieldSpec]:
        """Fields that the model needs, in the order of the schema."""
        used = {source for feature in self.features.values() for source in feature.sources}
        return {name: spec for name, spec in self.schema_.fields.items() if name in used}

    @property
    def segments(self) -> tuple[str, ...]:
        """Logged fields whose values are watched apart."""
        declared = self.monitoring.segments
        wanted = self.training.slices if declared is None else declared
        logged = self.inputs.keys() - set(self.serving.log.redact)
        return tuple(name for name in wanted if name in logged)

    @property
    def record_topic(self) -> str:
        """Topic that producers push records to."""
        return f"everloop.records.{self.name}"

    @property
    def dead_letter_topic(self) -> str:
        """Topic that rejected records go to."""
        return f"everloop.dead-letters.{self.name}"


def _given(document: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """The document with a value at a path that it does not hold; as it is where something else is in the way."""
    key, *rest = path
    if not rest:
        return {key: value, **document}
    below = document.get(key, {})
    return (
        {**document, key: _given(below, tuple(rest), value)}
        if isinstance(below, dict)
        else document
    )


def load_pipeline(path: Path) -> Pipeline:
    """Loads one pipeline file.

    Raises:
        PipelineError: the file cannot be read, is not YAML, or breaks the specification.
    """
    return yaml_file.load(path, Pipeline)


def load_pipelines(folder: Path) -> dict[str, Pipeline]:
    """Loads every `*.yaml` of a folder, by pipeline name.

    Raises:
        PipelineError: the folder does not exist, a file is broken, or two files name the same pipeline.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder}: there is no such folder of pipelines")
    pipelines: dict[str, Pipeline] = {}
    for path in sorted(folder.glob("*.yaml")):
        pipeline = load_pipeline(path)
        if pipeline.name in pipelines:
            raise PipelineError(f"{path}:1: pipeline: '{pipeline.name}' is declared twice")
        pipelines[pipeline.name] = pipeline
    return pipelines
