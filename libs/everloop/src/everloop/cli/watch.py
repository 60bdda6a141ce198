"""`drift`, `decisions` and `trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.context import JsonOption, connected

if TYPE_CHECKING:
    from everloop.client import Trace
    from everloop_contracts.stubs.everloop.monitoring.v1.monitoring_pb2 import (
        Chunk,
        Decision,
        Measurement,
    )

__all__ = ["add_to"]

PANEL = "What is watched"
_DETAILED = 3
"""Newest chunks of which every finding that alerts is shown."""


def drift(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    version: Annotated[int, typer.Option(help="Model version; 0 for all.", min=0)] = 0,
    limit: Annotated[int, typer.Option(help="Chunks, newest first.", min=1)] = 30,
    as_json: JsonOption = False,
) -> None:
    """Show how inputs and quality move, chunk by chunk, and what the retrain policy decided.

    \b
    everloop drift flight-delays
    everloop drift flight-delays --version 2 --json
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, print_json, table, when

    with connected(ctx) as everloop:
        chunks = everloop.chunks(pipeline, version=version, limit=limit)
        made = everloop.decisions(pipeline, limit=limit)
    if as_json:
        print_json({"chunks": chunks, "decisions": made})
        return
    _lines(list(reversed(chunks)))
    table(
        (
            "chunk",
            "from",
            "rows#",
            "labels#",
            "estimated#",
            "realised#",
            "multivariate#",
            "most drifted",
            "alerts on",
        ),
        (
            (
                f"v{chunk.model_version}/{chunk.index}" + (" [red]alert[/]" if chunk.alert else ""),
                when(chunk.first_event_time),
                f"{chunk.rows:,}",
                f"{chunk.labelled_rows:,}",
                _number(chunk, "estimated_performance"),
                _number(chunk, "realised_performance"),
                _number(chunk, "multivariate"),
                "  ".join(
                    f"{item.feature} {_coloured(item.measurement)}" for item in chunk.features[:3]
                )
                or (chunk.failure and f"[red]not evaluated:[/] {escape(chunk.failure)}"),
                ", ".join(chunk.alerts),
            )
            for chunk in chunks
        ),
        empty="no chunk yet: the monitor evaluates a chunk when enough predictions have come",
    )
    for chunk in chunks[:_DETAILED]:
        for finding in chunk.findings:
            if finding.measurement.alert:
                where = " in ".join(name for name in (finding.feature, finding.segment) if name)
                measured = f"{finding.measurement.measure} {_coloured(finding.measurement)}"
                console.print(
                    f"v{chunk.model_version}/{chunk.index} {finding.condition}: {escape(where)} {measured}"
                )
    console.print()
    table(
        ("decided", "version", "action", "reason"),
        ((when(item.time), f"v{item.model_version}", item.action, item.reason) for item in made),
        empty="no decision yet",
    )


def decisions(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    limit: Annotated[int, typer.Option(help="Decisions, newest first.", min=1)] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what is decided from now on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the retrain policy decided, with the chunks that each decision rests on.

    \b
    everloop decisions flight-delays
    everloop decisions flight-delays --follow
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json, when

    with connected(ctx) as everloop:
        if not follow:
            found = everloop.decisions(pipeline, limit=limit)
            if as_json:
                print_json(found)
                return
            for item in found:
                _decision(item)
            if not found:
                console.print("[dim]no decision yet[/]")
            return
        for answer in everloop.watch_decisions(pipeline):
            if as_json:
                print_json(answer)
            elif answer.HasField("decision"):
                _decision(answer.decision)
            else:
                told = answer.early_warning
                console.print(
                    f"{when(told.time)} [yellow]early warning[/] {told.chunk_id}: {told.feature} changed, seen after"
                    f" {told.seen_after:,} of {told.rows:,} rows"
                )


def _decision(item: Decision) -> None:
    from rich.markup import escape

    from everloop.cli.output import console, when

    colour = {"retrain": "green", "wait": "dim", "did_not_help": "red"}.get(item.action, "yellow")
    console.print(
        f"{when(item.time)} [{colour}]{item.action}[/] v{item.model_version}"
        + (f" [dim]request {item.request_id}[/]" if item.request_id else "")
    )
    console.print(f"  {escape(item.reason)}")
    for one in item.evidence:
        mark = "[red]▲[/]" if one.alert else "·"
        console.print(
            f"  {mark} {one.chunk_id} {one.condition} [dim]severity {one.severity:.2f}[/] {escape(one.shown)}"
        )


def _lines(chunks: list[Chunk]) -> None:
    """Draws each measure over the chunks, oldest first."""
    from everloop.cli.output import console, sparkline

    for name in ("realised_performance", "estimated_performance", "multivariate"):
        measures: list[Measurement] = [
            getattr(chunk, name) for chunk in chunks if chunk.HasField(name)
        ]
        if not measures:
            continue
        values = [getattr(chunk, name).value if chunk.HasField(name) else None for chunk in chunks]
        label = f"{name.replace('_', ' ')} ({measures[-1].measure})"
        low, high = min(m.value for m in measures), max(m.value for m in measures)
        console.print(f"{label:<36} {sparkline(values)}  {low:.3f} to {high:.3f}")
    if chunks:
        alerts = "".join("▲" if chunk.alert else "·" for chunk in chunks)
        console.print(f"{'alert':<36} [red]{alerts}[/]\n")


def _number(chunk: Chunk, name: str) -> str:
    return _coloured(getattr(chunk, name)) if chunk.HasField(name) else ""  # type: ignore[arg-type]


def _coloured(measurement: Measurement) -> str:
    text = f"{measurement.value:.3f}"
    return f"[red]{text}[/]" if measurement.alert else text


def trace(
    ctx: typer.Context,
    prediction_id: Annotated[str, typer.Argument(help="As `predict` printed it.")],
    as_json: JsonOption = False,
) -> None:
    """Follow a prediction back to its model, its run, its data and the events behind them.

    \b
    everloop trace 00000192f0a1b2c3-1a
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        found = everloop.trace(prediction_id)
    if as_json:
        print_json(found)
        return
    console.print(_tree(found))


def _tree(found: Trace) -> object:
    from rich.tree import Tree

    from everloop.cli.output import enum_name, when

    prediction, version, dataset = found.prediction, found.lineage.version, found.dataset
    answer = (
        f"{prediction.label} ({prediction.score:.4f})"
        if prediction.label
        else f"{prediction.score:.4f}"
    )
    root = Tree(f"[bold]prediction[/] {prediction.prediction_id}")
    said = "answered nobody, its model was on trial: it said" if prediction.shadow else "answered"
    root.add(f"{said} {answer} at {when(prediction.time)}")
    root.add(
        f"record {prediction.record_id or '(none given)'}, actual {prediction.actual or 'not known yet'}"
    )
    root.add(f"logged by event {prediction.event_id}")
    cause = enum_name(version.DESCRIPTOR.fields_by_name["cause"], version.cause)
    model = root.add(
        f"[bold]model[/] {version.model} v{version.version} ({version.family}, trained for {cause})"
    )
    for entry in found.lineage.audit:
        reason = f": {entry.reason}" if entry.reason else ""
        model.add(
            f"{entry.action} by {entry.actor} at {when(entry.time)}{reason} [dim]cause {entry.cause_id}[/]"
        )
    run = model.add(f"[bold]run[/] {version.run_id}  [dim]{version.model_uri}[/]")
    run.add("  ".join(f"{name} {value:.4f}" for name, value in sorted(version.metrics.items())))
    run.add(f"training {version.training_id}, announced by event {found.lineage.trained_event_id}")
    run.add(f"caused by {found.lineage.training_cause_id}")
    data = run.add(
        f"[bold]dataset[/] {dataset.pipeline} v{dataset.version}: {dataset.rows:,} rows,"
        f" {when(dataset.first_event_time)} to {when(dataset.last_event_time)}"
    )
    data.add(f"git tag {dataset.git_tag}, commit {dataset.git_commit[:12]} in {dataset.git_url}")
    tracked = dataset.data
    data.add(
        f"{tracked.path} [dim]md5 {tracked.md5}, {tracked.size_bytes:,} bytes in {len(dataset.objects)} files[/]"
    )
    data.add(f"caused by {dataset.cause_id}")
    return root


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (drift, decisions, trace):
        app.command(rich_help_panel=PANEL)(command)
