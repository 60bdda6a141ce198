"""The pipeline specification: what a user declares, checked at load with file, line and field.

A pipeline is one YAML file. Its models below are the reference of every key; unknown keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, available_timezones

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

__all__ = [
    "BinsFeature",
    "CategoryFeature",
    "CrossFeature",
    "DatePartFeature",
    "Feature",
    "FieldSpec",
    "FieldType",
    "Gate",
    "NumberFeature",
    "Pipeline",
    "PipelineError",
    "RatioFeature",
    "TargetMeanFeature",
    "Task",
    "load_pipeline",
    "load_pipelines",
]

NAME = re.compile(r"^[a-z][a-z0-9-]{0,62}$")
DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
BOOL = "tag:yaml.org,2002:bool"
MESSAGES = {"extra_forbidden": "there is no such key", "missing": "is missing"}
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class PipelineError(ValueError):
    """A pipeline file that cannot be used; the message names file, line and field."""


def _duration(value: object) -> object:
    if isinstance(value, str) and (match := DURATION.match(value)):
        try:
            return timedelta(seconds=float(match[1]) * UNIT_SECONDS[match[2]])
        except OverflowError as error:
            raise ValueError("a duration is at most 999999999 days") from error
    if isinstance(value, timedelta):
        return value
    raise ValueError("a duration is a number with a unit: 30s, 10m, 2h or 7d")


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class FieldType(StrEnum):
    """Type of a field of a record."""

    STRING = "string"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TIMESTAMP = "timestamp"


class FieldSpec(_Spec):
    """One field of a record."""

    type: FieldType
    nullable: bool = False
    min: float | None = None
    """Smallest value that is accepted (numbers)."""
    max: float | None = None
    """Largest value that is accepted (numbers)."""
    categories: tuple[str, ...] | None = None
    """Values that are accepted (strings); anything where not given."""
    timezone: str = "UTC"
    """Zone whose wall clock `date_part` features read (timestamps)."""
    description: str = ""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"no such time zone: {value}")
        return value

    @model_validator(mode="after")
    def _constraints_fit_the_type(self) -> Self:
        numeric = self.type in (FieldType.INT, FieldType.FLOAT)
        if not numeric and (self.min is not None or self.max is not None):
            raise ValueError("min and max are for int and float fields")
        if self.categories is not None and self.type is not FieldType.STRING:
            raise ValueError("categories are for string fields")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The zone as an object."""
        return ZoneInfo(self.timezone)


class Schema(_Spec):
    """Shape of a record: a flat JSON object."""

    id: str
    """Field that names the record; the last record with an id wins, and late labels are joined by it."""
    time: str
    """Field that says when the record happened (event time)."""
    fields: dict[str, FieldSpec]

    @model_validator(mode="after")
    def _keys_exist(self) -> Self:
        for name in self.fields:
            if name.startswith("everloop_"):
                raise ValueError(f"fields.{name}: names that start with everloop_ are reserved")
        if len({name.lower() for name in self.fields}) < len(self.fields):
            raise ValueError("fields: two names are the same but for case")
        for key, wanted in (("id", FieldType.STRING), ("time", FieldType.TIMESTAMP)):
            name = getattr(self, key)
            if name not in self.fields:
                raise ValueError(f"{key}: there is no field '{name}'")
            if self.fields[name].type is not wanted or self.fields[name].nullable:
                raise ValueError(f"{key}: field '{name}' must be of type {wanted} and not nullable")
        return self


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class Target(_Spec):
    """What is predicted."""

    field: str
    task: Task


class NumberFeature(_Spec):
    """A numeric field as it is; nulls become the training median."""

    kind: Literal["number"]
    of: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class CategoryFeature(_Spec):
    """A text or boolean field as a category; rare and unseen values share one code."""

    kind: Literal["category"]
    of: str
    max_categories: int = Field(default=64, ge=2, le=4096)
    """The most frequent values that keep a code of their own."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class DatePartFeature(_Spec):
    """Hour or weekday (Monday is 0) of a timestamp, on the wall clock of the field's time zone."""

    kind: Literal["date_part"]
    of: str
    part: Literal["hour", "weekday"]

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class BinsFeature(_Spec):
    """Number of edges that a numeric field reaches."""

    kind: Literal["bins"]
    of: str
    edges: tuple[float, ...] = Field(min_length=1)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)

    @field_validator("edges")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("edges must increase")
        return value


class RatioFeature(_Spec):
    """One numeric field divided by another; the training median where it is not defined."""

    kind: Literal["ratio"]
    of: str
    by: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of, self.by)


class CrossFeature(_Spec):
    """Two text fields together as one category."""

    kind: Literal["cross"]
    of: tuple[str, str]
    max_categories: int = Field(default=256, ge=2, le=16384)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return self.of


class TargetMeanFeature(_Spec):
    """Mean of the target per value of a text field, over the training rows, shrunk to the overall mean."""

    kind: Literal["target_mean"]
    of: str
    smoothing: float = Field(default=50.0, gt=0)
    """Weight of the overall mean, in rows."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


Feature = Annotated[
    NumberFeature
    | CategoryFeature
    | DatePartFeature
    | BinsFeature
    | RatioFeature
    | CrossFeature
    | TargetMeanFeature,
    Field(discriminator="kind"),
]
_NUMERIC = (FieldType.INT, FieldType.FLOAT)
_TEXT = (FieldType.STRING,)
_ACCEPTS: dict[str, tuple[FieldType, ...]] = {
    "number": (*_NUMERIC, FieldType.BOOL),
    "category": (FieldType.STRING, FieldType.BOOL),
    "date_part": (FieldType.TIMESTAMP,),
    "bins": _NUMERIC,
    "ratio": _NUMERIC,
    "cross": _TEXT,
    "target_mean": _TEXT,
}


class Cut(_Spec):
    """When a dataset version is cut by itself; it can always be cut on request."""

    rows: int = Field(default=100_000, ge=1)
    """Accepted records since the last version."""
    age: Duration = timedelta(hours=24)
    """Time since the oldest record that is in no version yet."""


class Search(_Spec):
    """Budget of the search over model families."""

    trials: int = Field(default=8, ge=1, le=1000)
    concurrency: int = Field(default=2, ge=1, le=64)
    time_budget: Duration = timedelta(minutes=10)
    """No new trial starts after this long."""
    metric: Literal["roc_auc", "log_loss", "accuracy", "rmse", "mae"] = "roc_auc"


class Holdout(_Spec):
    """The newest rows by event time, kept from training to judge the model."""

    fraction: float = Field(default=0.2, gt=0, lt=0.9)


class Triggers(_Spec):
    """What starts a training."""

    min_rows: int = Field(default=1_000, ge=1)
    """Labelled rows before the first training."""
    new_rows: int | None = Field(default=None, ge=1)
    """Labelled rows since the last training that start another; never where not given."""
    on_drift: bool = True
    """Train when the monitor asks for it."""


class Training(_Spec):
    """How models are made."""

    families: tuple[str, ...] = Field(min_length=1)
    search: Search = Search()
    holdout: Holdout = Holdout()
    window: Literal["all"] | Duration = "all"
    """Rows to learn from: all so far, or the newest by event time."""
    triggers: Triggers = Triggers()
    seed: int = 7


class MetricFloorGate(_Spec):
    """The holdout metric reaches a value."""

    kind: Literal["metric_floor"]
    metric: str
    min: float


class BetterThanProductionGate(_Spec):
    """The holdout metric beats the Production version's on the same rows by a margin; passes if there is none."""

    kind: Literal["better_than_production"]
    metric: str
    margin: float = 0.0
    higher_is_better: bool = True


class ExportParityGate(_Spec):
    """The ONNX export gives the model's own outputs on the golden rows."""

    kind: Literal["export_parity"]
    max_difference: float = Field(default=1e-4, ge=0)


Gate = Annotated[
    MetricFloorGate | BetterThanProductionGate | ExportParityGate, Field(discriminator="kind")
]


class Promotion(_Spec):
    """What a model must show before it serves."""

    approval: Literal["automatic", "manual"] = "automatic"
    gates: tuple[Gate, ...] = ()


class PredictionLog(_Spec):
    """What inference writes down."""

    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of predictions that are logged."""


class Serving(_Spec):
    """How the model serves."""

    max_batch_rows: int = Field(default=4096, ge=1, le=65536)
    """Rows that one request may hold."""
    log: PredictionLog = PredictionLog()


class DriftRule(_Spec):
    """When a chunk counts as drifted."""

    method: Literal["jensen_shannon", "hellinger"] = "jensen_shannon"
    threshold: float = Field(default=0.1, gt=0)
    """Distance above which a feature counts as drifted."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of drifted features at which the chunk counts as drifted."""


class PerformanceRule(_Spec):
    """When a chunk counts as badly predicted."""

    metric: Literal["roc_auc", "accuracy", "f1", "rmse", "mae"] = "roc_auc"
    max_loss: float = Field(default=0.03, gt=0)
    """Loss against the reference sample, in units of the metric, that is tolerated."""


class Retrain(_Spec):
    """When a new model is asked for."""

    when: tuple[Literal["drift", "estimated_performance", "realised_performance"], ...] = (
        "realised_performance",
    )
    chunks: int = Field(default=2, ge=1)
    """Alerting chunks among the last `of` that it takes."""
    of: int = Field(default=3, ge=1)
    cooldown: Duration = timedelta(hours=1)
    """Time after a request in which no other is made."""

    @model_validator(mode="after")
    def _n_of_m(self) -> Self:
        if self.chunks > self.of:
            raise ValueError(f"chunks ({self.chunks}) cannot exceed of ({self.of})")
        return self


class Monitoring(_Spec):
    """What is watched."""

    chunk_rows: int = Field(default=5_000, ge=100)
    min_labelled: float = Field(default=0.5, gt=0, le=1)
    """Share of a chunk's rows that need a label before its performance is realised, once labels stop coming for it."""
    drift: DriftRule = DriftRule()
    performance: PerformanceRule = PerformanceRule()
    retrain: Retrain = Retrain()


class Pipeline(_Spec):
    """One pipeline, as its YAML file declares it."""

    name: str = Field(alias="pipeline")
    description: str = ""
    schema_: Schema = Field(alias="schema")
    target: Target
    features: dict[str, Feature] = Field(min_length=1)
    partitions: int = Field(default=6, ge=1, le=256)
    """Partitions of the pipeline's record topic."""
    cut: Cut = Cut()
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

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        fields = self.schema_.fields
        target = fields.get(self.target.field)
        if target is None:
            raise ValueError(f"target.field: there is no field '{self.target.field}'")
        wanted = {
            Task.BINARY: (FieldType.BOOL,),
            Task.MULTICLASS: (FieldType.STRING,),
            Task.REGRESSION: _NUMERIC,
        }[self.target.task]
        if target.type not in wanted:
            raise ValueError(
                f"target.field: a {self.target.task} target is of type {' or '.join(wanted)}"
            )
        if not target.nullable:
            raise ValueError("target.field: the target must be nullable, labels may come late")
        for name, feature in self.features.items():
            for source in feature.sources:
                if source not in fields:
                    raise ValueError(f"features.{name}: there is no field '{source}'")
                if source in (self.target.field, self.schema_.id):
                    raise ValueError(f"features.{name}: '{source}' is the target or the record id")
                if fields[source].type not in _ACCEPTS[feature.kind]:
                    raise ValueError(
                        f"features.{name}: a {feature.kind} feature takes "
                        f"{' or '.join(_ACCEPTS[feature.kind])} fields, '{source}' is {fields[source].type}"
                    )
        return self

    @property
    def inputs(self) -> dict[str, FieldSpec]:
        """Fields that the model needs, in the order of the schema."""
        used = {source for feature in self.features.values() for source in feature.sources}
        return {name: spec for name, spec in self.schema_.fields.items() if name in used}

    @property
    def record_topic(self) -> str:
        """Topic that producers push records to."""
        return f"everloop.records.{self.name}"

    @property
    def dead_letter_topic(self) -> str:
        """Topic that rejected records go to."""
        return f"everloop.dead-letters.{self.name}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: to YAML 1.1 the key `on` and the category NO are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    BOOL, re.compile("^(?:true|false|True|False|TRUE|FALSE)$"), list("tfTF")
)


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Line (from 1) and node of one key or item; None if the document does not hold it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _locate(node: yaml.Node | None, path: tuple[str | int, ...]) -> tuple[int, str]:
    """Line (from 1) of the deepest part of `path` that the document holds, and the path's name.

    Parts in between that the document does not hold are left out: pydantic adds the kind of a feature or gate.
    """
    line, names = 1, []
    for number, part in enumerate(path, start=1):
        found = _child(node, part)
        if found:
            line, node = found
        if found or number == len(path):
            names.append(str(part))
    return line, ".".join(names) or "pipeline"


def _duplicates(node: yaml.Node, path: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """Line and name of every key that its mapping holds already; YAML lets the last one win in silence."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _duplicates(item, (*path, str(number)))
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            here = (*path, str(key.value))
            if str(key.value) in seen:
                yield key.start_mark.line + 1, ".".join(here)
            seen.add(str(key.value))
            yield from _duplicates(value, here)


def _problem(item: ErrorDetails, node: yaml.Node | None) -> str:
    """One of pydantic's findings as `line: field: message`."""
    where = item["loc"]
    message = MESSAGES.get(item["type"], item["msg"].removeprefix("Value error, "))
    field, colon, rest = message.partition(": ")
    if item["type"] == "value_error" and colon and " " not in field:
        # Checks across several fields begin with the name of the one to look at.
        where, message = (*where, *field.split(".")), rest
    line, name = _locate(node, where)
    return f"{line}: {name}: {message}"


def load_pipeline(path: Path) -> Pipeline:
    """Loads one pipeline file.

    Raises:
        PipelineError: the file cannot be read, is not YAML, or breaks the specification.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        document = yaml.load(text, Loader=_Loader)  # a SafeLoader
        repeated = list(_duplicates(node)) if node else []
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise PipelineError(f"{path}:{line}: not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}:1: not YAML: {str(error).splitlines()[0]}") from error
    except ValueError as error:  # a date that is none, for example
        raise PipelineError(f"{path}:1: not YAML: {error}") from error
    except RecursionError as error:
        raise PipelineError(f"{path}:1: not YAML: nested too deep, or in itself") from error
    problems = [f"{line}: {name}: is there twice" for line, name in repeated]
    try:
        pipeline = Pipeline.model_validate(document)
    except ValidationError as error:
        problems += [_problem(item, node) for item in error.errors()]
    if problems:
        raise PipelineError("\n".join(f"{path}:{problem}" for problem in problems))
    return pipeline


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
