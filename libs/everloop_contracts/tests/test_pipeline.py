"""The specification: what is accepted, and what a person is told about the rest."""

from __future__ import annotations

import re
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.pipeline import (
    FieldType,
    Pipeline,
    PipelineError,
    load_pipeline,
    load_pipelines,
)
from everloop_contracts.spec import AsWritten

EXAMPLES = Path(__file__).parents[3] / "pipelines"

GOOD = """\
pipeline: late
schema:
  id: id
  time: at
  fields:
    id: {type: string}
    at: {type: timestamp, timezone: America/New_York}
    colour: {type: string, categories: [NO, on, red]}
    size: {type: float, min: 0}
    weight: {type: int, nullable: true}
    late: {type: bool, nullable: true}
target: {field: late, task: binary}
features:
  hour: {kind: date_part, of: at, part: hour}
  size: {kind: number, of: size}
  density: {kind: ratio, of: weight, by: size}
cut: {rows: 100, age: 90m}
training:
  families: [mlp]
  window: 30d
promotion:
  gates:
    - {kind: metric_floor, metric: roc_auc, min: 0.6}
    - kind: better_than_production
      metric: roc_auc
monitoring:
  retrain: {chunks: 2, of: 3}
"""


@pytest.fixture
def load(tmp_path):
    def load(text: str) -> Pipeline:
        path = tmp_path / "late.yaml"
        path.write_text(text)
        return load_pipeline(path)

    return load


@pytest.fixture
def complaint(tmp_path, load):
    """What is said about a text, without the file's name."""

    def complaint(text: str) -> list[str]:
        with pytest.raises(PipelineError) as caught:
            load(text)
        lines = str(caught.value).splitlines()
        assert all(line.startswith(f"{tmp_path / 'late.yaml'}:") for line in lines)
        return [line.removeprefix(f"{tmp_path / 'late.yaml'}:") for line in lines]

    return complaint


def test_the_examples_load():
    assert "flight-delays" in load_pipelines(EXAMPLES)


def test_a_good_pipeline_says_what_it_says(load):
    pipeline = load(GOOD)
    assert pipeline.name == "late"
    assert pipeline.cut.age == timedelta(minutes=90)
    assert pipeline.training.window == timedelta(days=30)
    assert [gate.kind for gate in pipeline.promotion.gates] == [
        "metric_floor",
        "better_than_production",
    ]
    assert list(pipeline.inputs) == ["at", "size", "weight"]
    assert pipeline.record_topic == "everloop.records.late"


def test_words_that_older_yaml_takes_for_truth_values_are_words(load):
    assert load(GOOD).schema_.fields["colour"].categories == ("NO", "on", "red")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # Unknown keys, at every depth.
        ("cut: {rows", "cuts: {rows", "17: cuts: there is no such key"),
        ("age: 90m", "aeg: 90m", "17: cut.aeg: there is no such key"),
        ("min: 0.6", "mim: 0.6", "23: promotion.gates.0.mim: there is no such key"),
        ("part: hour}", "part: hour, at: x}", "14: features.hour.at: there is no such key"),
        ("cut: {rows", "on: {rows", "17: on: there is no such key"),
        # Missing ones.
        ("  families: [mlp]\n", "", "18: training.families: is missing"),
        ("task: binary", "", "12: target.task: is missing"),
        ("of: weight, by: size", "of: weight", "16: features.density.by: is missing"),
        (", min: 0.6}", "}", "23: promotion.gates.0.min: is missing"),
        # Durations.
        ("90m", "90", "17: cut.age: a duration is a number with a unit: 30s, 10m, 2h or 7d"),
        ("90m", "soon", "17: cut.age: a duration is a number with a unit: 30s, 10m, 2h or 7d"),
        ("90m", "1w", "17: cut.age: a duration is a number with a unit: 30s, 10m, 2h or 7d"),
        (
            "cut: {rows",
            "serving: {batch: {target: 0ms}}\ncut: {rows",
            "17: serving.batch.target: Input should be greater than 0 seconds",
        ),
        (
            "cut: {rows",
            "serving: {pool: {min_replicas: 3, max_replicas: 2}}\ncut: {rows",
            "17: serving.pool: min_replicas (3) cannot exceed max_replicas (2)",
        ),
        # The contract of the data.
        (
            "categories: [NO, on, red]",
            "pattern: '(?=a)'",
            "8: schema.fields.colour.pattern: no regular expression of RE2: invalid perl operator: (?=",
        ),
        ("min: 0}", "max_length: 3}", "9: schema.fields.size: max_length is for string fields"),
        (
            "  fields:",
            "  freshness: {}\n  fields:",
            "5: schema.freshness: max_age or max_ahead is wanted",
        ),
        (
            "  fields:",
            "  rules:\n  - {name: r, check: size > 0}\n  - {name: r, check: sise > 0}\n  fields:",
            "7: schema.rules.1.name: there is another rule 'r'",
        ),
        (
            "  fields:",
            "  rules:\n  - {name: r, check: size > 0, when: weight > 'a'}\n  fields:",
            "6: schema.rules.0.when: a number cannot be compared with a string",
        ),
        # References to fields.
        ("id: id", "id: key", "3: schema.id: there is no field 'key'"),
        (
            "time: at",
            "time: size",
            "4: schema.time: field 'size' must be of type timestamp and not nullable",
        ),
        ("field: late", "field: lat", "12: target.field: there is no field 'lat'"),
        (
            "cut: {rows",
            "serving: {log: {redact: [size, late]}}\ncut: {rows",
            "17: serving.log.redact.1: 'late' is no input of the model",
        ),
        ("of: size}", "of: sise}", "15: features.size: there is no field 'sise'"),
        ("of: size}", "of: late}", "15: features.size: 'late' is the target or the record id"),
        (
            "of: size}",
            "of: colour}",
            "15: features.size: a feature of kind number takes int or float or bool fields here,",
        ),
        (
            "{type: bool, nullable: true}",
            "{type: bool}",
            "12: target.field: the target must be nullable, labels may come late",
        ),
        (
            "task: binary",
            "task: regression",
            "12: target.field: a regression target is of type int or float",
        ),
        # Values.
        (
            "America/New_York",
            "Mars/Olympus",
            "7: schema.fields.at.timezone: no such time zone: Mars/Olympus",
        ),
        (
            "{type: string}",
            "{type: string, min: 1}",
            "6: schema.fields.id: min and max are for int and float fields",
        ),
        (
            "pipeline: late",
            "pipeline: Late!",
            "1: pipeline: a name is lower-case letters, digits and dashes",
        ),
        ("chunks: 2", "chunks: 4", "27: monitoring.retrain: chunks (4) cannot exceed of (3)"),
        ("rows: 100", "rows: 0", "17: cut.rows: Input should be greater than or equal to 1"),
        ("rows: 100", "rows: many", "17: cut.rows: Input should be a valid integer"),
        (
            "kind: number",
            "kind: numbre",
            "15: features.size: there is no 'kind' 'numbre'; there are: 'number', ",
        ),
        # What would be words of a library.
        ("kind: number, ", "", "15: features.size: 'kind' is missing"),
        (
            "window: 30d",
            "window: some",
            "20: training.window: 'all' or a duration is wanted; a duration is a number with a unit",
        ),
        (
            "{type: string}",
            "text",
            "6: schema.fields.id: must be keys with values",
        ),
        (
            "{type: string}",
            "{type: int, min: 2, max: 1}",
            "6: schema.fields.id: min (2) cannot exceed max (1)",
        ),
        ("families: [mlp]", "families: mlp", "19: training.families: must be a list"),
        # Metrics that do not fit the task.
        (
            "families: [mlp]",
            "families: [mlp]\n  search: {metric: rmse}",
            "20: training.search.metric: 'rmse' does not fit a binary task; there are: roc_auc, accuracy",
        ),
        (
            "metric: roc_auc, min",
            "metric: mae, min",
            "23: promotion.gates.0.metric: 'mae' does not fit a binary task; there are: ",
        ),
        (
            "metric: roc_auc, min",
            "metric: brier, min",
            "23: promotion.gates.0.metric: less brier is better: a metric_ceiling gate bounds it",
        ),
        (
            "kind: metric_floor, metric: roc_auc, min: 0.6",
            "kind: metric_ceiling, metric: f1, max: 0.6",
            "23: promotion.gates.0.metric: more f1 is better: a metric_floor gate bounds it",
        ),
        (
            "kind: metric_floor, metric: roc_auc, min: 0.6",
            "kind: slice_floor, metric: brier, min: 0.6",
            "23: promotion.gates.0.metric: less brier is better: a slice_ceiling gate bounds it",
        ),
        (
            "kind: metric_floor, metric: roc_auc, min: 0.6",
            "kind: fairness_difference, metric: f1, field: nope, max_difference: 0.1",
            "23: promotion.gates.0.field: there is no field 'nope'",
        ),
        (
            "      metric: roc_auc\n",
            "      metric: rmse\n",
            "25: promotion.gates.1.metric: 'rmse' does not fit a binary task",
        ),
        (
            "metric: roc_auc, min",
            "metric: auc, min",
            "23: promotion.gates.0.metric: Input should be",
        ),
        (
            "  retrain:",
            "  performance: {metric: mae}\n  retrain:",
            "27: monitoring.performance.metric: 'mae' does not fit a binary task",
        ),
        (
            "families: [mlp]",
            "families: [mlp]\n  slices: [colour, shade]",
            "20: training.slices.1: there is no field 'shade'",
        ),
        (
            "families: [mlp]",
            "families: [mlp]\n  slices: [late]",
            "20: training.slices.0: 'late' is the target or the record id",
        ),
        (
            "families: [mlp]",
            "families: [mlp]\n  slices: [size]",
            "20: training.slices.0: slices are by string or bool fields, 'size' is float",
        ),
        (
            "families: [mlp]",
            "families: [mlp]\n  costs: {false_negative: 0}",
            "20: training.costs.false_negative: Input should be greater than 0",
        ),
        (
            "  size: {kind: number, of: size}",
            "  size: {kind: aggregate, function: mean, by: colour, time: at, window: 7d}",
            "15: features.size.aggregate: a sum or a mean is `of` a field, a count is of none",
        ),
        (
            "  size: {kind: number, of: size}",
            "  size: {kind: aggregate, function: count, by: colour, time: at, window: 36h}",
            "15: features.size.aggregate: window must be whole days, such as 7d",
        ),
        (
            "  size: {kind: number, of: size}",
            "  size: {kind: aggregate, function: mean, of: size, by: weight, time: at, window: 7d}",
            "15: features.size: a feature of kind aggregate takes string fields here, 'weight' is int",
        ),
        # Twice.
        ("  size: {kind", "  hour: {kind", "15: features.hour: is there twice"),
        ("cut: {rows: 100", "cut: {rows: 9, rows: 100", "17: cut.rows: is there twice"),
    ],
)
def test_a_mistake_is_named_with_line_and_field(complaint, old, new, said):
    assert old in GOOD
    assert any(line.startswith(said) for line in complaint(GOOD.replace(old, new, 1)))


def test_all_mistakes_are_named_at_once(complaint):
    broken = GOOD.replace("90m", "soon").replace("min: 0.6", "mim: 0.6")
    assert [line.split(": ")[1] for line in complaint(broken)] == [
        "cut.age",
        "promotion.gates.0.min",
        "promotion.gates.0.mim",
    ]


def test_all_misfits_are_named_at_once(complaint):
    broken = GOOD.replace("of: size}", "of: sise}").replace("field: late", "field: lat")
    broken = broken.replace("metric: roc_auc", "metric: rmse", 1)
    assert [line.split(": ")[1] for line in complaint(broken)] == [
        "target.field",
        "features.size",
        "promotion.gates.0.metric",
    ]


def of_task(task: str, kind: str) -> str:
    """The good pipeline for another task, without any metric named."""
    gates = GOOD.index("  gates:"), GOOD.index("monitoring:")
    text = (GOOD[: gates[0]] + GOOD[gates[1] :]).replace("promotion:\n", "")
    text = text.replace("late: {type: bool", f"late: {{type: {kind}")
    return text.replace("task: binary", f"task: {task}")


@pytest.mark.parametrize(
    ("task", "kind", "metric", "when"),
    [
        ("binary", "bool", "roc_auc", ("realised_performance",)),
        ("multiclass", "string", "roc_auc", ("drift",)),
        ("regression", "float", "rmse", ("realised_performance",)),
    ],
)
@pytest.mark.parametrize("training", ["families: [mlp]", "families: [mlp]\n  search: {trials: 3}"])
def test_what_a_pipeline_does_not_name_fits_its_task(load, task, kind, metric, when, training):
    pipeline = load(of_task(task, kind).replace("families: [mlp]", training))
    assert pipeline.training.search.metric == metric
    assert pipeline.monitoring.performance.metric == metric
    assert pipeline.monitoring.retrain.when == when


def test_a_multiclass_pipeline_cannot_retrain_on_a_performance_that_is_not_watched(complaint):
    text = of_task("multiclass", "string").replace(
        "{chunks", "{when: [drift, realised_performance], chunks"
    )
    assert complaint(text)[0].endswith(
        "monitoring.retrain.when: the performance of a multiclass task is not watched; there is: drift"
    )


def test_what_takes_classes_is_refused_where_there_are_none(complaint):
    text = of_task("regression", "float")
    more = "families: [mlp]\n  calibration: sigmoid\n  class_weights: balanced\n  costs: {}"
    said = complaint(text.replace("families: [mlp]", more))
    assert [line.partition(": ")[2] for line in said] == [
        "training.class_weights: a regression task has no classes",
        "training.calibration: a regression task has no classes",
        "training.costs: a regression task has no threshold that costs could set",
    ]


@pytest.mark.parametrize(
    "gate",
    [
        "metric_floor, metric: f1, min: 0",
        "metric_ceiling, metric: brier, max: 1",
        "slice_floor, metric: f1, min: 0",
        "slice_ceiling, metric: brier, max: 1, min_rows: 10",
        "fairness_difference, metric: brier, max_difference: 0.1",
        "latency_budget, max_p99: 5ms",
        "size_budget, max_bytes: 100000",
        "signature",
    ],
)
def test_a_bound_fits_the_direction_of_its_metric(load, gate):
    text = GOOD.replace("metric_floor, metric: roc_auc, min: 0.6", gate)
    assert load(text).promotion.gates[0].kind == gate.split(",")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1: the file: must be keys with values"),
        ("- a\n- b\n", "1: the file: must be keys with values"),
        ("a: [1,\nb: 2", "2: not YAML: "),
        ("a: 1\n\tb: 2", "2: not YAML: "),
        ("a: \x07", "1: not YAML: "),
        ("a: !!python/object:os.system x", "1: not YAML: could not determine a constructor"),
    ],
)
def test_what_is_not_a_mapping_or_not_yaml_is_named_with_its_line(complaint, text, said):
    assert complaint(text)[0].startswith(said)


@pytest.mark.parametrize(
    "text",
    ["x: 2013-13-45", "&a [*a]", "[" * 1500, "cut: {age: 99999999999d}"],
    ids=["no such date", "holds itself", "nested too deep", "endless"],
)
def test_what_trips_a_parser_is_a_mistake_of_the_file(complaint, text):
    assert complaint(text)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(PipelineError, match="cannot be read"):
        load_pipeline(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00bad\xff")
    with pytest.raises(PipelineError, match=r"binary\.yaml"):
        load_pipeline(tmp_path / "binary.yaml")


def test_two_files_may_not_declare_one_pipeline(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(PipelineError, match=r"b\.yaml:1: pipeline: 'late' is declared twice"):
        load_pipelines(tmp_path)
    with pytest.raises(PipelineError, match="no such folder"):
        load_pipelines(tmp_path / "nowhere")


def test_a_pipeline_does_not_change(load):
    with pytest.raises(ValueError, match="frozen"):
        load(GOOD).partitions = 3


# Any valid pipeline survives being written down and loaded.

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
amounts = st.integers(1, 999)
durations = st.builds(lambda n, unit: f"{n}{unit}", amounts, st.sampled_from(["ms", *"smhd"]))
floats = st.floats(-1e9, 1e9).map(lambda value: value + 0.0)


@st.composite
def field_specs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "type": kind,
        "nullable": draw(st.booleans()),
        "description": draw(texts),
    }
    if kind in ("int", "float") and draw(st.booleans()):
        spec["min"], spec["max"] = sorted((draw(floats), draw(floats)))
    if kind == "string" and draw(st.booleans()):
        spec["categories"] = draw(st.lists(texts, min_size=1, max_size=4))
    if kind == "timestamp":
        spec["timezone"] = draw(st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]))
    return spec


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    kinds = draw(
        st.dictionaries(
            names.map(lambda name: f"f_{name}"),
            st.sampled_from(["string", "bool", "int", "float", "timestamp"]),
            min_size=1,
            max_size=6,
        )
    )
    fields = {name: draw(field_specs(kind)) for name, kind in kinds.items()}
    feature_of: dict[str, dict[str, Any]] = {
        "string": {"kind": "category"},
        "bool": {"kind": "category"},
        "int": {"kind": "number"},
        "float": {"kind": "bins", "edges": sorted(draw(st.sets(floats, min_size=1, max_size=4)))},
        "timestamp": {"kind": "date_part", "part": draw(st.sampled_from(["hour", "weekday"]))},
    }
    features = {f"x_{name}": {**feature_of[kind], "of": name} for name, kind in kinds.items()}
    task, target = draw(
        st.sampled_from([("binary", "bool"), ("multiclass", "string"), ("regression", "float")])
    )
    bound = (
        {"kind": "metric_ceiling", "metric": "rmse", "max": draw(floats)}
        if task == "regression"
        else {"kind": "metric_floor", "metric": "roc_auc", "min": draw(floats)}
    )
    gates = [
        bound,
        {"kind": "export_parity", "max_difference": abs(draw(floats))},
        {"kind": "latency_budget", "max_p99": draw(durations)},
        {"kind": "signature"},
    ]
    of = draw(st.integers(1, 9))
    return {
        "pipeline": draw(st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)),
        "schema": {
            "id": "id",
            "time": "at",
            "fields": {
                "id": {"type": "string"},
                "at": {"type": "timestamp"},
                **fields,
                "y": {"type": target, "nullable": True},
            },
        },
        "target": {"field": "y", "task": task},
        "features": features,
        "cut": {"rows": draw(amounts), "age": draw(durations)},
        "serving": {"batch": {"target": draw(durations), "max_rows": draw(amounts)}},
        "training": {
            "families": draw(st.lists(names, min_size=1, max_size=3)),
            "window": draw(durations | st.just("all")),
        },
        "promotion": {
            "approval": draw(st.sampled_from(["automatic", "manual"])),
            "gates": gates[: draw(st.integers(0, 2))],
        },
        "monitoring": {"retrain": {"of": of, "chunks": draw(st.integers(1, of))}},
    }


@settings(max_examples=60)
@given(documents())
def test_a_valid_pipeline_survives_being_written_and_loaded(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("round") / "trip.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))
    first = load_pipeline(path)
    assert first == Pipeline.model_validate(document)
    assert {name: str(spec.type) for name, spec in first.schema_.fields.items()} == {
        name: spec["type"] for name, spec in document["schema"]["fields"].items()
    }
    again = Pipeline.model_validate(first.model_dump(by_alias=True))
    assert again == first
    assert set(first.inputs) == {feature["of"] for feature in document["features"].values()}
    assert all(spec.type in FieldType for spec in first.inputs.values())


@settings(max_examples=60)
@given(documents(), st.data())
def test_whatever_is_taken_out_the_complaint_names_a_line_of_the_file(
    tmp_path_factory, document, data
):
    section = data.draw(st.sampled_from(["pipeline", "schema", "target", "features", "training"]))
    del document[section]
    path = tmp_path_factory.mktemp("broken") / "broken.yaml"
    text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        load_pipeline(path)
    rest = str(caught.value).splitlines()[0].removeprefix(f"{path}:")
    line, field, message = rest.split(": ", 2)
    assert 1 <= int(line) <= len(text.splitlines())
    assert (field, message) == (section, "is missing")


def test_indentation_is_no_matter_of_the_loader(load):
    assert load(textwrap.indent(GOOD, "  ")) == load(GOOD)


def test_the_json_schema_explains_every_key_as_a_file_writes_it():
    schema = Pipeline.model_json_schema(schema_generator=AsWritten)
    triggers = schema["$defs"]["Triggers"]["properties"]
    assert triggers["new_rows"]["description"].startswith("Labelled rows since the last training")
    age = schema["$defs"]["Cut"]["properties"]["age"]
    assert age["default"] == "1d" and re.search(age["pattern"], "90s")
    assert not re.search(age["pattern"], "P1D")
    assert schema["$defs"]["Search"]["properties"]["time_budget"]["default"] == "10m"
    window = schema["$defs"]["Training"]["properties"]["window"]
    assert re.search(window["pattern"], "all") and re.search(window["pattern"], "30d")
