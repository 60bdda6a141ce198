"""What a run leaves behind: `summary.json`, `report.html`, and the summary on the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.table import Table

from everloop.cli.output import plain
from everloop.demo import report, summary
from everloop.demo.evaluate import metrics_of
from everloop.demo.run import Run, StepFailed

__all__ = ["RESULTS", "collect", "write"]

SUMMARY, REPORT = RESULTS = ("summary.json", "report.html")

LIMIT = 500


def write(run: Run) -> None:
    """Writes both files and prints the summary.

    Raises:
        StepFailed: The run did not show what the demo promises; the files say what.
    """
    found = collect(run)
    problems = summary.problems(found)
    found["problems"] = problems
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    seconds = {name: door.seconds for name, door in run.traffic.tally.doors.items()}
    page = report.render(found, seconds, problems)
    # Both at the end: an earlier run's two files are of one run until here.
    (run.home / SUMMARY).write_text(text)
    (run.home / REPORT).write_text(page)
    _print(run, found)
    if problems:
        raise StepFailed("the run did not show everything: " + "; ".join(problems))


def collect(run: Run) -> dict[str, Any]:
    """Returns what `summary.json` holds."""
    client, name, tally = run.client, run.name, run.traffic.tally
    requested = run.events.find("RetrainRequested")
    trained = run.events.find("ModelTrained", lambda event: bool(event.data.baseline_version))
    if requested is None or trained is None:
        raise StepFailed("the events of the retrain did not go by", "kafka")
    sent = run.produced + run.feed.records_sent + run.feed.labels_sent
    later = {run.old: run.comparison.stale, run.new: run.comparison.retrained}
    versions = sorted(client.models(name, limit=LIMIT), key=lambda version: version.version)
    chunks = client.chunks(name, limit=LIMIT)
    first = run.traffic.tally.first
    return {
        "started": run.started.isoformat(),
        "duration_seconds": round(run.screen.seconds, 1),
        "flights": len(run.flights),
        "records": summary.books(sent, run.broken, client.stats(name)),
        "predictions": summary.predictions(tally),
        "versions": [
            summary.version_line(version, later.get(version.version)) for version in versions
        ],
        "stale_vs_retrained": run.comparison.as_dict(),
        "served_by_month": _served_by_month(run),
        "drift": [summary.drift_line(chunk) for chunk in reversed(chunks)],
        "decisions": [plain(decision) for decision in client.decisions(name, limit=LIMIT)],
        "recovery_seconds": (first[run.new].time - requested.time).total_seconds(),
        "training_seconds": trained.data.training_seconds,
        "lineage": run.lineage,
        "causation_gaps": run.causation_gaps,
        "memory": asdict(run.memory.use),
        "trainings": [
            {
                "start": plain(training.start_time),
                "seconds": training.end_time.seconds - training.start_time.seconds,
            }
            for training in client.trainings(name)
            if training.start_time.seconds and training.end_time.seconds
        ],
        "serving": _spells(run),
        "events": dict(run.events.counts),
        "timeline": summary.timeline(run.events.seen),
    }


def _served_by_month(run: Run) -> list[dict[str, Any]]:
    """What the clients got: the scores that were answered, whichever version gave them."""
    late = run.flights.late
    lines = []
    for month in range(1, 13):
        rows = np.flatnonzero((run.flights.month == month) & (run.traffic.versions > 0))
        if len(rows):
            scores = run.traffic.scores[rows].astype(np.float64)
            lines.append({"month": month, **asdict(metrics_of(late[rows], scores))})
    return lines


def _spells(run: Run) -> list[tuple[float, float, int]]:
    """From when to when each version answered, in seconds since the start."""
    begins = sorted(
        ((first.time - run.started).total_seconds(), version)
        for version, first in run.traffic.tally.first.items()
    )
    end = (datetime.now(UTC) - run.started).total_seconds()
    ends = [begin for begin, _ in begins[1:]] + [end]
    return [(begin, stop, version) for (begin, version), stop in zip(begins, ends, strict=True)]


def _print(run: Run, found: dict[str, Any]) -> None:
    records, asked, both = found["records"], found["predictions"], found["stale_vs_retrained"]
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold")
    grid.add_column()
    reasons = ", ".join(f"{count} {why}" for why, count in records["rejected_by_reason"].items())
    doors = ", ".join(
        f"{name} p99 {door['p99_ms']:.0f} ms"
        for name, door in asked["by_door"].items()
        if door["p99_ms"] is not None
    )
    rows = [
        (
            "records",
            f"{records['sent']:,} sent = {records['accepted']:,} accepted"
            f" + {records['rejected']:,} rejected ({reasons})",
        ),
        ("predictions", f"{asked['sent']:,} sent, {asked['failed']:,} failed ({doors})"),
    ]
    for line in found["versions"]:
        auc = (line["metrics"] or {}).get("roc_auc")
        later = f"; later flights ROC AUC {auc:.4f}" if auc is not None else ""
        rows.append(
            (
                f"version {line['version']}",
                f"{line['family']}, because of {line['cause']}, {line['stage']}, from {line['dataset_tag']}{later}",
            )
        )
    alerts = [chunk["id"] for chunk in found["drift"] if chunk["alert"]]
    version = found["lineage"]
    rows += [
        (
            "old against new",
            f"{both['stale']['rows']:,} flights that neither learned from:"
            f" {_auc(both['stale'])} without, {_auc(both['retrained'])} with the retrain",
        ),
        ("drift", f"{len(alerts)} of {len(found['drift'])} chunks alert"),
        (
            "recovery",
            f"{found['recovery_seconds']:.1f} s from the request to the new version's first answer,"
            f" {found['training_seconds']:.1f} s of them training",
        ),
        (
            "lineage",
            f"prediction {version['prediction_id']} ← v{version['model_version']} ← run {version['mlflow_run_id']}"
            f" ← dataset v{version['dataset_version']} ← git tag {version['git_tag']} ({version['git_commit'][:12]})",
        ),
        (
            "machine",
            f"{found['duration_seconds']:.0f} s, {found['memory']['peak_bytes'] / 2**30:.2f} GiB at most",
        ),
    ]
    for row in rows:
        grid.add_row(*row)
    run.screen.console.print(grid)
    run.screen.line(f"\n  [bold]summary[/] {run.home / SUMMARY}")
    run.screen.line(f"  [bold]report[/]  {(run.home / REPORT).as_uri()}")


def _auc(metrics: dict[str, Any]) -> str:
    return "unknown" if metrics["roc_auc"] is None else f"ROC AUC {metrics['roc_auc']:.4f}"
