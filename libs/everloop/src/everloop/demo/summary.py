"""What the run showed, as data; and whether it showed what the demo promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from everloop.cli.output import enum_name, plain
from everloop.demo.evaluate import Metrics
from everloop.demo.events import EventLog, Seen, describe
from everloop.demo.traffic import Tally
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2
from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

__all__ = [
    "books",
    "chain_gaps",
    "drift_line",
    "predictions",
    "problems",
    "timeline",
    "version_line",
]


def books(
    sent: int, broken: dict[str, int], stats: ingest_pb2.GetPipelineStatsResponse
) -> dict[str, Any]:
    """Returns the books of the records: what the demo sent against what ingest settled.

    Args:
        sent: Messages that the demo's producers put on the topic, labels included.
        broken: How many of them were broken on purpose, by what was broken.
        stats: Ingest's own books.
    """
    return {
        "sent": sent,
        "accepted": stats.accepted,
        "rejected": stats.rejected,
        "rejected_by_reason": dict(sorted(stats.rejected_by_reason.items())),
        "broken_on_purpose": broken,
        "labels": stats.actuals,
    }


def predictions(tally: Tally) -> dict[str, Any]:
    """Returns the books of the predictions."""
    return {
        "sent": tally.sent,
        "failed": tally.failed,
        "errors": tally.errors,
        "by_door": {
            name: {
                "requests": door.requests,
                "sent": door.sent,
                "failed": door.failed,
                "p50_ms": door.milliseconds(0.5),
                "p99_ms": door.milliseconds(0.99),
                "max_ms": door.milliseconds(1.0),
            }
            for name, door in tally.doors.items()
        },
    }


def version_line(version: registry_pb2.ModelVersion, later: Metrics | None) -> dict[str, Any]:
    """Returns a model version; `metrics` are those on the later flights that all versions are compared on."""
    fields = version.DESCRIPTOR.fields_by_name
    return {
        "version": version.version,
        "cause": enum_name(fields["cause"], version.cause),
        "stage": enum_name(fields["stage"], version.stage),
        "family": version.family,
        "metrics": asdict(later) if later else None,
        "holdout_metrics": dict(sorted(version.metrics.items())),
        "dataset_tag": version.dataset_tag,
        "gates": [plain(gate) for gate in version.gates],
    }


def drift_line(chunk: monitoring_pb2.Chunk) -> dict[str, Any]:
    """Returns an evaluated chunk of predictions."""
    line: dict[str, Any] = plain(chunk)
    return line


def timeline(events: Sequence[Seen]) -> list[dict[str, Any]]:
    """Returns the events in words."""
    return [
        {
            "time": event.time.isoformat(),
            "event": event.name,
            "id": event.id,
            "cause": event.cause,
            "source": event.source,
            "text": describe(event),
        }
        for event in events
    ]


def chain_gaps(log: EventLog, promoted: Seen, chain: Sequence[Seen]) -> list[str]:
    """Says where the chain of causes of a drift-driven promotion is broken; nothing where it is whole."""
    names = [event.name for event in chain]
    gaps = [
        f"no {name} among the causes of the promotion {promoted.id}"
        for name in ("ModelTrained", "RetrainRequested")
        if name not in names
    ]
    last = chain[-1]
    if not last.cause:
        gaps.append(f"{last.name} {last.id} names no cause")
    elif not log.knows(last.cause):
        gaps.append(f"{last.name} {last.id} names a cause that never went by: {last.cause}")
    return gaps


def problems(summary: dict[str, Any]) -> list[str]:
    """Returns what the run failed to show; nothing where all is well."""
    found = []
    records, asked = summary["records"], summary["predictions"]
    if asked["failed"]:
        found.append(f"{asked['failed']:,} predictions failed: {'; '.join(asked['errors'])}")
    if not asked["sent"]:
        found.append("no prediction was asked for")
    if records["sent"] != records["accepted"] + records["rejected"]:
        found.append(
            f"records sent ({records['sent']:,}) are not accepted ({records['accepted']:,})"
            f" + rejected ({records['rejected']:,})"
        )
    if records["rejected"] != sum(records["rejected_by_reason"].values()):
        found.append("a rejected record has no reason")
    if records["rejected"] != sum(records["broken_on_purpose"].values()):
        found.append(
            f"{records['rejected']:,} records were rejected,"
            f" {sum(records['broken_on_purpose'].values()):,} were broken on purpose"
        )
    by_number = {line["version"]: line for line in summary["versions"]}
    if len(by_number) < 2:
        found.append(f"there are {len(by_number)} model versions, not two")
    elif by_number[min(number for number in by_number if number > 1)]["cause"] != "drift":
        found.append("the second version was not made because of drift")
    found += summary["causation_gaps"]
    return found
