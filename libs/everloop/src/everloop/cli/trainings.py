"""`train`, and `trainings list`, `watch` and `cancel`."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from everloop.cli.context import JsonOption, ListUnlessTold, connected, require_known, say
from everloop.cli.models import PANEL, ReasonOption

if TYPE_CHECKING:
    from everloop_contracts.stubs.everloop.training.v1.training_pb2 import Training

__all__ = ["add_to"]

TrainingArgument = Annotated[str, typer.Argument(help="Id of the training.")]


def train(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline.")],
    request_id: Annotated[
        str,
        typer.Option(help="Said again, it finds the same training instead of starting another."),
    ] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has ended.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Train on everything that has arrived, whatever the triggers say. Exit code 1 if it ends without a model.

    Interrupted, the command stops waiting; the training goes on.

    \b
    everloop train flight-delays
    everloop train flight-delays --no-wait
    """  # noqa: D301 - the backspace keeps the lines apart
    with connected(ctx) as everloop:
        training = everloop.train(pipeline, request_id=request_id)
        _follow(everloop.watch_training(training.id) if wait else iter([training]), as_json)


trainings = typer.Typer(
    cls=ListUnlessTold,
    help="""List trainings, follow one, or cancel it.

    \b
    everloop trainings flight-delays
    everloop trainings watch TRAINING
    everloop trainings cancel TRAINING --reason "wrong data"
    """,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@trainings.command(name="list")
def list_(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline; default: all.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List trainings, newest first.

    \b
    everloop trainings list flight-delays
    everloop trainings flight-delays
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import enum_name, print_json, table, when

    with connected(ctx) as everloop:
        found = everloop.trainings(pipeline, limit=limit)
        if pipeline and not found:
            require_known(everloop, pipeline)
    if as_json:
        print_json(found)
        return
    table(
        (
            "training",
            "pipeline",
            "dataset",
            "state",
            "cause",
            "trials#",
            "best#",
            "family",
            "queued",
            "seconds#",
        ),
        (
            (
                item.id,
                item.pipeline,
                f"v{item.dataset_version}",
                enum_name(item.DESCRIPTOR.fields_by_name["state"], item.state)
                + (f": {item.error}" if item.error else ""),
                enum_name(item.DESCRIPTOR.fields_by_name["cause"], item.cause),
                f"{item.trials_done}/{item.trials_total}",
                f"{item.best_metric:.4f}" if item.best_family else "",
                item.best_family,
                when(item.create_time),
                str(item.end_time.seconds - item.start_time.seconds)
                if item.end_time.seconds and item.start_time.seconds
                else "",
            )
            for item in found
        ),
        empty="no training yet: `everloop train PIPELINE` starts one",
    )


@trainings.command()
def watch(ctx: typer.Context, training: TrainingArgument, as_json: JsonOption = False) -> None:
    """Follow a training to its end, a line for each change. Exit code 1 if it ends without a model.

    \b
    everloop trainings watch 5e0f…
    """  # noqa: D301 - the backspace keeps the lines apart
    with connected(ctx) as everloop:
        _follow(everloop.watch_training(training), as_json)


@trainings.command()
def cancel(
    ctx: typer.Context,
    training: TrainingArgument,
    reason: ReasonOption = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until its trials have stopped.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Cancel a training: its trials are stopped and no model comes of it. A repeat changes nothing.

    The next request trains again; the pipeline's triggers wait for data newer than this training's.

    \b
    everloop trainings cancel 5e0f… --reason "wrong data"
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        found = everloop.cancel_training(training, reason=reason, actor=getpass.getuser())
        if wait:
            *_, found = everloop.watch_training(training)
    if as_json:
        print_json(found)
    else:
        console.print(f"training {found.id}: {_state(found)}", soft_wrap=True, markup=False)


def _follow(states: Iterator[Training], as_json: bool) -> None:
    """Tells each state, the last one on standard output; leaves with exit code 1 if there is no model."""
    from everloop.cli.output import console, print_json

    before = ""
    for training in states:
        now, state = _now(training), _state(training)
        if before and now != before:
            say(before)
        before = now
    if as_json:
        print_json(training)
    else:
        console.print(f"training {training.id} of {now}", soft_wrap=True, markup=False)
        if training.error:
            console.print(training.error, soft_wrap=True, markup=False)
        elif state == "superseded":
            console.print("a newer request took its place: `everloop trainings` shows it")
        elif state == "succeeded":
            console.print(f"what the gates say of the model: `everloop models {training.pipeline}`")
    raise typer.Exit(1 if state in ("failed", "superseded", "cancelled") else 0)


def _now(training: Training) -> str:
    trials = f", {training.trials_done} of {training.trials_total} trials ended"
    best = f", best {training.best_metric:.4f} ({training.best_family})"
    return (
        f"{training.pipeline} v{training.dataset_version}: {_state(training)}"
        f"{trials if training.trials_total else ''}{best if training.best_family else ''}"
    )


def _state(training: Training) -> str:
    from everloop.cli.output import enum_name

    return enum_name(training.DESCRIPTOR.fields_by_name["state"], training.state)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=PANEL)(train)
    app.add_typer(trainings, name="trainings", rich_help_panel=PANEL)
