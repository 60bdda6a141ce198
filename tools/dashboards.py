"""Writes the Grafana dashboards of deploy/grafana from the tables below: a row per panel.

`--check` changes nothing and fails where a file differs. What a panel asks must return series on a stack whose loop
has closed once; the end-to-end tests ask a live Prometheus for every one of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef

FOLDER: Final = Path(__file__).parent.parent / "deploy/grafana"
SOURCE: Final = DataSourceRef("prometheus", "${datasource}")


class Panel(NamedTuple):
    """One picture: its title, Grafana's name of the unit, and legend to query."""

    title: str
    unit: str
    queries: dict[str, str]


def _quantiles(metric: str, by: str) -> dict[str, str]:
    """Median and p99 of a histogram."""
    buckets = f"sum by ({by}, le) (rate({metric}_bucket[5m]))"
    return {
        f"{{{{{by}}}}} {name}": f"histogram_quantile({share}, {buckets})"
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


OVERVIEW: Final = (
    Panel(
        "Records in",
        "ops",
        {"{{pipeline}} {{outcome}}": "pipeline_outcome:everloop_ingest_records:rate5m"},
    ),
    Panel("Predictions out", "reqps", {"{{model}}": "model:everloop_inference_requests:rate5m"}),
    Panel(
        "Share of requests that fail",
        "percentunit",
        {"failed": "everloop:inference_faults:ratio_rate5m"},
    ),
    Panel(
        "Version that serves",
        "none",
        {"{{model}}": "max by (model) (everloop_inference_served_version)"},
    ),
    Panel(
        "Share of features that drifted",
        "percentunit",
        {"{{pipeline}}": "everloop_monitor_drift_share_ratio"},
    ),
    Panel(
        "Performance",
        "none",
        {
            "{{pipeline}} {{metric}} estimated": "everloop_monitor_estimated_performance",
            "{{pipeline}} {{metric}} realised": "everloop_monitor_realised_performance",
        },
    ),
    Panel(
        "Decisions of the retrain policy",
        "none",
        {"{{pipeline}} {{action}}": "sum by (pipeline, action) (everloop_monitor_decisions_total)"},
    ),
    Panel(
        "Promotions",
        "none",
        {"{{model}} {{move}}": "sum by (model, move) (everloop_registry_promotions_total)"},
    ),
)
INFERENCE: Final = (
    Panel(
        "Requests",
        "reqps",
        {
            "{{door}} {{model}}": "sum by (door, model) (rate(everloop_inference_requests_total[5m]))"
        },
    ),
    Panel("Rows", "ops", {"{{model}}": "sum by (model) (rate(everloop_inference_rows_total[5m]))"}),
    Panel(
        "Time to an answer",
        "s",
        {
            "{{door}} p50": "door:everloop_inference_duration_seconds:p50_5m",
            "{{door}} p99": "door:everloop_inference_duration_seconds:p99_5m",
        },
    ),
    Panel(
        "Refused and failed",
        "reqps",
        {
            "{{door}} {{reason}}": "sum by (door, reason) (rate(everloop_inference_errors_total[5m])) or vector(0)"
        },
    ),
    Panel("Rows that run together", "none", _quantiles("everloop_inference_batch_rows", "model")),
    Panel(
        "Prediction log: logged",
        "ops",
        {"{{model}}": "sum by (model) (rate(everloop_inference_log_logged_rows_total[5m]))"},
    ),
    Panel(
        "Prediction log: not yet, or never",
        "none",
        {
            f"{{{{model}}}} {name}": f"sum by (model) (everloop_inference_log_{name}_rows{suffix})"
            for name, suffix in (("buffered", ""), ("spilled", ""), ("dropped", "_total"))
        },
    ),
    Panel(
        "Versions that began to serve",
        "none",
        {"{{model}}": "sum by (model) (everloop_inference_swaps_total)"},
    ),
    Panel(
        "Served as logged, not by the export",
        "bool",
        {"{{model}}": "max by (model) (everloop_inference_slow_model)"},
    ),
    Panel(
        "Registry gateway answers",
        "bool",
        {
            "replicas": "min(everloop_inference_registry_up)",
            "data plane": "min(everloop_inference_data_plane_up)",
        },
    ),
)
DATA: Final = (
    Panel(
        "Records settled",
        "ops",
        {"{{pipeline}} {{outcome}}": "pipeline_outcome:everloop_ingest_records:rate5m"},
    ),
    Panel(
        "Share that is rejected",
        "percentunit",
        {"{{pipeline}}": "pipeline:everloop_ingest_rejected:ratio_rate15m"},
    ),
    Panel("Records that wait", "none", {"{{pipeline}}": "sum by (pipeline) (everloop_ingest_lag)"}),
    Panel(
        "Bytes read and not settled", "bytes", {"{{instance}}": "everloop_ingest_buffered_bytes"}
    ),
    Panel(
        "Time to settle a batch",
        "s",
        _quantiles("everloop_ingest_settle_duration_seconds", "pipeline"),
    ),
    Panel(
        "Time to cut a version", "s", _quantiles("everloop_ingest_cut_duration_seconds", "pipeline")
    ),
    Panel("Rows of a shard", "none", _quantiles("everloop_ingest_shard_rows", "pipeline")),
    Panel(
        "Events handled",
        "ops",
        {
            "{{job}} {{type}} {{outcome}}": "sum by (job, type, outcome) (rate(everloop_events_handled_total[5m]))"
        },
    ),
)
DRIFT: Final = (
    Panel(
        "Share of features that drifted",
        "percentunit",
        {"{{pipeline}}": "everloop_monitor_drift_share_ratio"},
    ),
    Panel(
        "Distance of each feature",
        "none",
        {"{{pipeline}} {{feature}}": "everloop_monitor_feature_distance"},
    ),
    Panel(
        "PCA reconstruction error",
        "none",
        {"{{pipeline}}": "everloop_monitor_reconstruction_error"},
    ),
    Panel(
        "Performance, estimated without labels",
        "none",
        {"{{pipeline}} {{metric}}": "everloop_monitor_estimated_performance"},
    ),
    Panel(
        "Performance, realised",
        "none",
        {"{{pipeline}} {{metric}}": "everloop_monitor_realised_performance"},
    ),
    Panel(
        "Alerts",
        "none",
        {
            "{{pipeline}} {{condition}}": "sum by (pipeline, condition) (everloop_monitor_alerts_total)"
        },
    ),
    Panel(
        "Version of the newest chunk",
        "none",
        {"{{pipeline}}": "everloop_monitor_chunk_model_version"},
    ),
    Panel(
        "Predictions and labels stored",
        "ops",
        {
            "{{pipeline}} predictions": "rate(everloop_monitor_predictions_total[5m])",
            "{{pipeline}} labels": "rate(everloop_monitor_actuals_total[5m])",
        },
    ),
    Panel("Chunks that wait", "none", {"{{pipeline}}": "everloop_monitor_waiting_chunks"}),
    Panel(
        "Time to evaluate a chunk",
        "s",
        _quantiles("everloop_monitor_evaluate_duration_seconds", "stage"),
    ),
)
TRAINING: Final = (
    Panel(
        "Trainings",
        "none",
        {"{{pipeline}} {{state}}": "sum by (pipeline, state) (everloop_trainings)"},
    ),
    Panel("Time of a training", "s", _quantiles("everloop_training_duration_seconds", "pipeline")),
    Panel(
        "Trials",
        "none",
        {"{{family}} {{outcome}}": "sum by (family, outcome) (everloop_training_trials_total)"},
    ),
    Panel(
        "Versions by stage",
        "none",
        {"{{model}} {{stage}}": "sum by (model, stage) (everloop_registry_model_versions)"},
    ),
    Panel(
        "Verdicts of gates",
        "none",
        {
            "{{model}} {{gate}} {{verdict}}": "sum by (model, gate, verdict) (everloop_registry_gate_verdicts_total)"
        },
    ),
    Panel(
        "Promotions",
        "none",
        {"{{model}} {{move}}": "sum by (model, move) (everloop_registry_promotions_total)"},
    ),
)
DASHBOARDS: Final[dict[str, tuple[str, Sequence[Panel]]]] = {
    "overview": ("the loop", OVERVIEW),
    "inference": ("inference", INFERENCE),
    "data": ("data", DATA),
    "drift": ("drift", DRIFT),
    "training": ("training", TRAINING),
}


def queries() -> list[str]:
    """Everything that the panels ask."""
    return [
        query
        for _, panels in DASHBOARDS.values()
        for panel in panels
        for query in panel.queries.values()
    ]


def wanted() -> dict[Path, str]:
    """Every dashboard's file with its content."""
    return {
        FOLDER / f"{name}.json": JSONEncoder(indent=2, sort_keys=True).encode(
            _board(name, title, panels).build()
        )
        + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


def _board(name: str, title: str, panels: Sequence[Panel]) -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard(f"Everloop: {title}")
        .uid(f"everloop-{name}")
        .tags(["everloop"])
        .refresh("10s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
    )
    for panel in panels:
        board = board.with_panel(_picture(panel))
    return board


def _picture(panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions().show_legend(True)
    picture = (
        timeseries.Panel()
        .title(panel.title)
        .unit(panel.unit)
        .min(0)
        .span(12)
        .height(8)
        .datasource(SOURCE)
        .legend(legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM))
    )
    for place, (label, query) in enumerate(panel.queries.items()):
        picture = picture.with_target(
            prometheus.Dataquery().expr(query).legend_format(label).ref_id(chr(ord("A") + place))
        )
    return picture


def main() -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a file differs")
    check = parser.parse_args().check
    changed = [
        (path, text)
        for path, text in wanted().items()
        if not path.exists() or path.read_text() != text
    ]
    for path, text in changed:
        if check:
            print(f"{path.relative_to(FOLDER.parent.parent)}: run `python tools/dashboards.py`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
