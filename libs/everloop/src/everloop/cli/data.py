"""`push`, `cut`, `datasets`, `erase` and `check`."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.context import JsonOption, connected, home_of, say
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.client import Everloop, Pushed
    from everloop.resume import PushState
    from everloop_contracts.stubs.everloop.ingest.v1.dataset_pb2 import DatasetVersion

__all__ = ["add_to"]

PANEL = "Data"
EXAMPLES = 3


def push(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV, JSON Lines or Parquet.")],
    pipeline: Annotated[str, typer.Option("--pipeline", "-p", help="Where the records belong.")],
    go_on: Annotated[
        bool, typer.Option("--resume", help="Go on where a push of this file was interrupted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push the records of a file. Exit code 1 if any was rejected.

    Late labels go the same way: records with the record id and the target only.

    \b
    everloop push flights.csv --pipeline flight-delays
    everloop push flights.csv --pipeline flight-delays --resume
    """  # noqa: D301 - the backspace keeps the lines apart
    from dataclasses import replace
    from itertools import islice

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from everloop import resume
    from everloop.cli.output import print_json
    from everloop.push import Pushed
    from everloop.records import field_types, open_records

    with connected(ctx) as everloop:
        source = open_records(file, lambda: field_types(pipeline, everloop.addresses.pipelines_dir))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        find = resume.resume if go_on else resume.begin
        state = find(file, pipeline, everloop.addresses.ingest)
        if state.position:
            say(
                f"the first {state.position:,} records had their answer before:"
                f" {state.accepted:,} accepted, {state.rejected:,} rejected"
            )
        before = replace(state)
        result = Pushed()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(file.name, total=source.total, completed=state.position)

            def answered(count: int) -> None:
                state.position += count
                state.accepted = before.accepted + result.accepted
                state.rejected = before.rejected + len(result.rejected)
                _keep(state)
                progress.advance(task, count)

            # They are read again, so that the lines of what follows are known.
            next(islice(source.records, state.position, state.position), None)
            try:
                everloop.push(
                    pipeline,
                    source.records,
                    on_batch=answered,
                    start=state.position,
                    push_id=state.id,
                    result=result,
                )
            except (EverloopError, KeyboardInterrupt):
                progress.stop()
                if state.position:
                    say(
                        f"the first {state.position:,} records had their answer before this; go on:"
                    )
                    home = home_of(ctx)
                    where = f" --home {shlex.quote(str(home))}" if home else ""
                    say(f"  everloop{where} push {shlex.quote(str(file))} -p {pipeline} --resume")
                raise
            resume.finish(state)
    if as_json:
        print_json(result)
    else:
        _summarise(result, source.place)
    raise typer.Exit(1 if state.rejected else 0)


def _keep(state: PushState) -> None:
    from everloop import resume

    try:
        resume.save(state)
    except OSError:
        # A push does not fail for want of a place to note how far it is: --resume says then that there is nothing.
        return


def _summarise(result: Pushed, place: Callable[[int], str]) -> None:
    from rich.markup import escape

    from everloop.cli.output import console

    console.print(f"[green]{result.accepted:,} accepted[/], {len(result.rejected):,} rejected")
    for reason, rejections in result.by_reason().items():
        console.print(f"\n[bold]{reason}[/]: {len(rejections):,}")
        for rejection in rejections[:EXAMPLES]:
            console.print(f"  {place(rejection.position)}: {escape(rejection.message)}")
            console.print(
                f"  [dim]{escape(rejection.record[:160].decode(errors='replace'))}[/]",
                soft_wrap=True,
            )
        if len(rejections) > EXAMPLES:
            console.print(f"  [dim]and {len(rejections) - EXAMPLES:,} more[/]")


def cut(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    as_json: JsonOption = False,
) -> None:
    """Cut a dataset version from everything that has arrived; training follows by the pipeline's triggers.

    \b
    everloop cut flight-delays
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        dataset = everloop.cut(pipeline)
        follows = "" if as_json else _what_follows(everloop, dataset)
    if as_json:
        print_json(dataset)
        return
    console.print(
        f"[green]{pipeline} v{dataset.version}[/]  {dataset.rows:,} rows, {dataset.labelled_rows:,} with a label"
    )
    if dataset.state == dataset.STATE_QUARANTINED:
        follows = (
            f"[yellow]in quarantine, not announced:[/] {escape(dataset.error)}\n"
            f'`everloop datasets {pipeline} --release {dataset.version} --reason "…"` announces it as it is'
        )
    console.print(f"git tag {dataset.git_tag} in {dataset.git_url}", soft_wrap=True)
    console.print(f"[dim]{_how_to_get(dataset)}[/]", soft_wrap=True)
    console.print(follows, soft_wrap=True)


def _how_to_get(dataset: DatasetVersion) -> str:
    """The command that anyone with access gets the rows by."""
    if dataset.versioning == "git-lfs":
        return f"git clone --branch {dataset.git_tag} {dataset.git_url}"
    return f"dvc get {dataset.git_url} {dataset.data.path} --rev {dataset.git_tag}"


def _what_follows(everloop: Everloop, dataset: DatasetVersion) -> str:
    """Says whether a training follows, as far as that is known here: of the first one it is."""
    from everloop_contracts.pipeline import PipelineError, load_pipelines
    from everloop_contracts.stubs.everloop.training.v1.training_pb2 import Training

    name = dataset.pipeline
    start = f"`everloop train {name}` starts one now"
    later = f"training follows by the pipeline's triggers; {start}"
    try:
        found = load_pipelines(Path(everloop.addresses.pipelines_dir or "none"))
        trainings = everloop.trainings(name, limit=500)
    except (EverloopError, PipelineError):
        return later
    without_model = (
        Training.STATE_FAILED,
        Training.STATE_SUPERSEDED,
        Training.STATE_CANCELLED,
    )
    if name not in found or any(item.state not in without_model for item in trainings):
        return later
    least = found[name].training.triggers.min_rows
    if dataset.labelled_rows < least:
        return f"no training follows: the first one waits for {least:,} rows with a label; {start}"
    return f"the first training follows: `everloop trainings {name}` shows it"


def datasets(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    release: Annotated[
        int | None, typer.Option(help="Announce this version, which is in quarantine.", min=1)
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Why it is released; for the audit trail, with --release.")
    ] = "",
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Who released or erased what of these versions, and why."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List dataset versions, newest first, with why one failed or is in quarantine; release one.

    \b
    everloop datasets flight-delays --limit 5
    everloop datasets flight-delays --release 7 --reason "the station was moved"
    everloop datasets flight-delays --audit
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, enum_name, print_json, table, when

    with connected(ctx) as everloop:
        if release is not None:
            if not reason:
                raise EverloopError("REASON_MISSING", "--release asks for a --reason")
            done = everloop.release(pipeline, release, reason=reason, actor=getpass.getuser())
            if as_json:
                print_json(done)
            else:
                console.print(f"[green]{pipeline} v{done.version} is announced[/]")
            return
        found = everloop.datasets(pipeline, limit=limit)
        if audit:
            found = [everloop.dataset(pipeline, item.version) for item in found]
    if as_json:
        print_json(found)
        return
    if audit:
        table(
            ("version", "action", "by", "why", "request", "time"),
            (
                (
                    f"v{item.version}",
                    entry.action.lower(),
                    escape(entry.actor),
                    escape(entry.reason),
                    escape(entry.request_id),
                    when(entry.time),
                )
                for item in found
                for entry in item.audit
            ),
            empty="nobody has released or erased anything of them",
        )
        return
    table(
        ("version", "state", "rows#", "labelled#", "from", "to", "cut", "git tag", "cause"),
        (
            (
                f"v{item.version}",
                enum_name(item.DESCRIPTOR.fields_by_name["state"], item.state),
                f"{item.rows:,}",
                f"{item.labelled_rows:,}",
                when(item.first_event_time),
                when(item.last_event_time),
                when(item.create_time),
                item.git_tag,
                item.cause_id,
            )
            for item in found
        ),
        empty=f"no dataset version yet: `everloop cut {pipeline}`",
    )
    for item in found:
        if item.error:
            console.print(f"[yellow]v{item.version}[/] {escape(item.error)}", soft_wrap=True)


def erase(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    reason: Annotated[
        str, typer.Option(help="Why, for the audit trail; without the entity's name.")
    ],
    record_id: Annotated[
        list[str] | None, typer.Option(help="Id of a record; may be said several times.")
    ] = None,
    where: Annotated[str, typer.Option(help="FIELD=VALUE: records with this value.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Cut a version without one entity's records and labels. Earlier versions still hold them: see ingest's README.

    \b
    everloop erase flight-delays --record-id UA-1545-EWR-2013-01-01T05:15 --reason "request 17"
    everloop erase orders --where customer=c-17 --reason "request 18"
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    field, _, value = where.partition("=")
    if where and not (field and value):
        raise EverloopError(
            "INVALID_ARGUMENT", f"'{where}' is not FIELD=VALUE", "say customer=c-17"
        )
    with connected(ctx) as everloop:
        done = everloop.erase(
            pipeline,
            record_id or [],
            field=field,
            value=value,
            reason=reason,
            actor=getpass.getuser(),
        )
    if as_json:
        print_json(done)
    else:
        console.print(f"[green]{pipeline} v{done.version}[/] is without them: {done.rows:,} rows")


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="Pipeline YAML files.")] = None,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema", help="Print what a file may say, as JSON Schema: every key and default."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check pipeline files: each problem with its file, line and field.

    \b
    everloop check pipelines/*.yaml
    everloop check --schema > pipeline.schema.json    for an editor with YAML support, or to read
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json
    from everloop_contracts.pipeline import Pipeline, PipelineError, load_pipeline
    from everloop_contracts.spec import AsWritten

    if schema:
        print_json(Pipeline.model_json_schema(schema_generator=AsWritten))
        return
    if not files:
        raise EverloopError("INVALID_ARGUMENT", "which files?", "everloop check pipelines/*.yaml")
    problems: dict[str, list[str]] = {}
    for file in files:
        try:
            pipeline = load_pipeline(file)
        except PipelineError as error:
            problems[str(file)] = str(error).splitlines()
            continue
        problems[str(file)] = []
        if not as_json:
            console.print(
                f"[green]ok[/] {file}: {pipeline.name}, {len(pipeline.schema_.fields)} fields,"
                f" {len(pipeline.features)} features, target {pipeline.target.field} ({pipeline.target.task})",
                soft_wrap=True,
            )
    if as_json:
        print_json(problems)
    broken = [line for lines in problems.values() for line in lines]
    if broken:
        if as_json:
            raise typer.Exit(1)
        raise EverloopError("BROKEN_PIPELINE", "\n".join(broken))


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (push, cut, datasets, erase, check):
        app.command(rich_help_panel=PANEL)(command)
