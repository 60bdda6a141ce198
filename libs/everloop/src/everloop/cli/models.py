"""`models list` and `watch`, `promote`, `rollback`, `approve`, `reject` and `archive`."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.context import JsonOption, ListUnlessTold, connected, require_known

if TYPE_CHECKING:
    from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion

__all__ = ["PANEL", "ReasonOption", "add_to"]

PANEL = "Models"
TOLD_METRICS = ("roc_auc", "log_loss", "rmse", "mae")
"""What a table has room for; `--json` has them all."""
ModelArgument = Annotated[str, typer.Argument(help="Name of the model.")]
WaitingArgument = Annotated[int, typer.Argument(help="Version in Staging.", min=1)]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="Why, for the audit trail.")]

models = typer.Typer(
    cls=ListUnlessTold,
    help="""List model versions, or watch what serves.

    \b
    everloop models flight-delays
    everloop models watch flight-delays
    """,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@models.command(name="list")
def list_(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "",
    dataset: Annotated[
        int | None,
        typer.Option(help="Only versions that learned from this dataset version of MODEL.", min=1),
    ] = None,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List model versions, newest first, with what the gates said.

    \b
    everloop models list flight-delays
    everloop models flight-delays --dataset 3
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, enum_name, print_json, table, when

    with connected(ctx) as everloop:
        found = everloop.models(model, dataset=dataset or 0, limit=limit)
        trials = everloop.trials(model)
        if model and not found:
            require_known(everloop, model)
    if as_json:
        print_json(found)
        return
    colours = {"production": "bold green", "staging": "cyan", "rejected": "red"}
    on_trial = {(trial.version.model, trial.version.version) for trial in trials}

    def stage(item: ModelVersion) -> str:
        name = enum_name(item.DESCRIPTOR.fields_by_name["stage"], item.stage)
        shown = f"[{colours.get(name, 'dim')}]{name}[/]"
        return f"{shown} [yellow]on trial[/]" if (item.model, item.version) in on_trial else shown

    table(
        ("model", "version", "stage", "family", "metrics", "dataset", "cause", "gates", "promoted"),
        (
            (
                item.model,
                f"v{item.version}",
                stage(item),
                item.family,
                "  ".join(
                    f"{name} {item.metrics[name]:.4f}"
                    for name in TOLD_METRICS
                    if name in item.metrics
                ),
                item.dataset_tag,
                enum_name(item.DESCRIPTOR.fields_by_name["cause"], item.cause),
                "  ".join(f"{'✓' if gate.passed else '✗'} {gate.gate}" for gate in item.gates),
                when(item.promote_time),
            )
            for item in found
        ),
        empty=f"no model has learned from {model} v{dataset}"
        if dataset
        else "no model yet: push data and cut a dataset version; training follows",
    )
    if found.mlflow_away:
        console.print(
            "[yellow]MLflow does not answer[/]: this is what the registry gateway knows; nothing can be moved until it"
            " is back",
            soft_wrap=True,
        )
    for item in found:
        for gate in item.gates:
            if not gate.passed:
                console.print(
                    f"{item.model} v{item.version} [red]✗ {gate.gate}[/]: {escape(gate.message)}",
                    soft_wrap=True,
                )


@models.command()
def watch(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Tell what serves and what is on trial, and again whenever that changes, until interrupted.

    \b
    everloop models watch flight-delays
    """  # noqa: D301 - the backspace keeps the lines apart
    from datetime import datetime

    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        for now in everloop.watch_production(model):
            if as_json:
                print_json(now)
                continue
            on_trial = {trial.version.model: trial.version.version for trial in now.trials}
            told = [
                f"{item.model} v{item.version}"
                + (f", v{on_trial[item.model]} on trial" if item.model in on_trial else "")
                for item in now.versions
            ]
            what = "; ".join(told) or "nothing is in Production"
            console.print(f"{datetime.now():%H:%M:%S} {what}", soft_wrap=True, markup=False)


def promote(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    version: Annotated[int, typer.Argument(help="Version to put into Production.", min=1)],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a version into Production; the one that served until then is archived.

    \b
    everloop promote flight-delays 3 --reason "better in winter"
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        # The etag as seen now: somebody else's change in between is an error, not overwritten.
        seen = everloop.model(model, version)
        done = everloop.promote(
            model, version, reason=reason, actor=getpass.getuser(), etag=seen.etag
        )
    if as_json:
        print_json(done)
    else:
        console.print(f"[green]{model} v{done.version} is in Production[/]")


def rollback(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put the previous Production version back.

    \b
    everloop rollback flight-delays --reason "too many false alarms"
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        done = everloop.rollback(model, reason=reason, actor=getpass.getuser())
    if as_json:
        print_json(done)
    else:
        console.print(f"[green]{model} v{done.version} is in Production again[/]")


def approve(
    ctx: typer.Context,
    model: ModelArgument,
    version: WaitingArgument,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Let a version in Staging go on: on trial where its pipeline says so, into Production otherwise.

    \b
    everloop approve flight-delays 3 --reason "reviewed"
    """  # noqa: D301 - the backspace keeps the lines apart
    _rule(ctx, "approve", model, version, reason=reason, as_json=as_json)


def reject(
    ctx: typer.Context,
    model: ModelArgument,
    version: WaitingArgument,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Reject a version in Staging: it cannot be promoted any more.

    \b
    everloop reject flight-delays 3 --reason "unfair to small airports"
    """  # noqa: D301 - the backspace keeps the lines apart
    _rule(ctx, "reject", model, version, reason=reason, as_json=as_json)


def archive(
    ctx: typer.Context,
    model: ModelArgument,
    version: WaitingArgument,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a version in Staging away; `everloop promote` still takes it.

    \b
    everloop archive flight-delays 3 --reason "a newer one is coming"
    """  # noqa: D301 - the backspace keeps the lines apart
    _rule(ctx, "archive", model, version, reason=reason, as_json=as_json)


def _rule(
    ctx: typer.Context, verb: str, model: str, version: int, *, reason: str, as_json: bool
) -> None:
    from everloop.cli.output import console, enum_name, print_json

    with connected(ctx) as everloop:
        # The etag as seen now: somebody else's change in between is an error, not overwritten.
        seen = everloop.model(model, version)
        ruled: ModelVersion = getattr(everloop, verb)(
            model, version, reason=reason, actor=getpass.getuser(), etag=seen.etag
        )
    if as_json:
        print_json(ruled)
        return
    stage = enum_name(ruled.DESCRIPTOR.fields_by_name["stage"], ruled.stage)
    where = "on trial" if (verb, stage) == ("approve", "staging") else f"in {stage}"
    told = stage if stage in ("rejected", "archived") else f"approved and {where}"
    console.print(f"[green]{model} v{version} is {told}[/]")


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(models, name="models", rich_help_panel=PANEL)
    for command in (promote, rollback, approve, reject, archive):
        app.command(rich_help_panel=PANEL)(command)
