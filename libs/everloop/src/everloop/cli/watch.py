"""`drift` and `trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.context import JsonOption, connected

if TYPE_CHECKING:
    from everloop.client import Trace
    from everloop_contracts.stubs.everloop.monitoring.v1.monitoring_pb2 import Chunk, Measurement

__all__ = ["add_to"]

PANEL = "What is watched"


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
        decisions = everloop.decisions(pipeline, limit=limit)
    if as_json:
        print_json({"chunks": chunks, "decisions": decisions})
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
            )
            for chunk in chunks
        ),
        empty="no chunk yet: the monitor evaluates a chunk when enough predictions have come",
    )
    console.print()
    table(
        ("decided", "version", "action", "reason"),
        (
            (when(item.time), f"v{item.model_version}", item.action, item.reason)
            for item in decisions
        ),
        empty="no decision yet",
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
    for item in dataset.objects:
        data.add(f"{item.path} [dim]md5 {item.md5}, {item.size_bytes:,} bytes[/]")
    data.add(f"caused by {dataset.cause_id}")
    return root


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (drift, trace):
        app.command(rich_help_panel=PANEL)(command)
