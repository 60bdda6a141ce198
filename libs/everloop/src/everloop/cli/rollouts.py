"""`rollouts`, and `rollout start`, `promote` and `abort`."""

from __future__ import annotations

import getpass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.context import JsonOption, connected, require_known
from everloop.cli.models import PANEL, ReasonOption
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.client import Everloop
    from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

__all__ = ["add_to"]

ModelArgument = Annotated[str, typer.Argument(help="Name of the model.")]


def rollouts(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, newest first: what each version on trial did beside the one in Production, and why it ended.

    \b
    everloop rollouts flight-delays
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, enum_name, print_json, table

    with connected(ctx) as everloop:
        found = everloop.rollouts(model, limit=limit)
        if model and not found:
            require_known(everloop, model)
    if as_json:
        print_json(found)
        return
    colours = {"running": "cyan", "promoted": "bold green", "aborted": "red"}

    def state(name: str) -> str:
        return f"[{colours.get(name, 'dim')}]{name}[/]"

    table(
        (
            "rollout",
            "model",
            "versions",
            "strategy",
            "share#",
            "state",
            "requests#",
            "failed#",
            "p99 ms#",
            "age / bake",
        ),
        (
            (
                item.id,
                item.model,
                f"v{item.candidate_version} beside v{item.baseline_version}",
                enum_name(item.plan.DESCRIPTOR.fields_by_name["strategy"], item.plan.strategy),
                f"{item.plan.percent:g} %",
                state(enum_name(item.DESCRIPTOR.fields_by_name["state"], item.state)),
                f"{item.candidate.requests:,} / {item.baseline.requests:,}",
                f"{_failed(item.candidate)} / {_failed(item.baseline)}",
                f"{_p99(item.candidate)} / {_p99(item.baseline)}",
                f"{_age(item)} / {timedelta(seconds=item.plan.bake.seconds)}",
            )
            for item in found
        ),
        empty="no rollout yet: `promotion.rollout` of a pipeline or `everloop rollout start` begins one",
    )
    for item in found:
        if item.reason:
            console.print(
                f"{item.model} v{item.candidate_version}: {item.reason}",
                soft_wrap=True,
                markup=False,
            )


def _failed(arm: registry_pb2.ArmStats) -> str:
    return f"{arm.errors / arm.requests:.2%}" if arm.requests else "-"


def _p99(arm: registry_pb2.ArmStats) -> str:
    from everloop_contracts.latency import quantile

    p99 = quantile(arm.latency_counts, 0.99)
    return "-" if p99 is None else f"{p99 * 1e3:.3g}"


def _age(rollout: registry_pb2.Rollout) -> timedelta:
    from google.protobuf.timestamp_pb2 import Timestamp

    until = rollout.end_time
    if not until.seconds:
        until = Timestamp()
        until.GetCurrentTime()
    return timedelta(seconds=max(until.seconds - rollout.start_time.seconds, 0))


rollout = typer.Typer(
    help="""Put a version on trial beside the one in Production, promote it, or take it back.

    \b
    everloop rollout start flight-delays
    everloop rollout promote flight-delays --reason "better in winter"
    everloop rollout abort flight-delays --reason "complaints"
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@rollout.command()
def start(
    ctx: typer.Context,
    model: ModelArgument,
    version: Annotated[
        int | None, typer.Argument(help="Version to try; default: the newest in Staging.", min=1)
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="canary: answers its share, is promoted when it has baked; shadow: the same unseen, it answers"
            " nobody; ab: answers its share until a person decides. Default: canary."
        ),
    ] = None,
    percent: Annotated[
        float | None, typer.Option(help="Share of the requests that it gets. Default: 10.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Field; equal values always get the same version. Default: the id."),
    ] = None,
    bake: Annotated[
        str | None, typer.Option(help="Time that the trial takes at least. Default: 30m.")
    ] = None,
    min_requests: Annotated[
        int | None, typer.Option(help="Requests that it must have seen. Default: 1000.")
    ] = None,
    error_rate: Annotated[
        float | None, typer.Option(help="Share of its requests that may fail. Default: 0.01.")
    ] = None,
    latency_ratio: Annotated[
        float | None,
        typer.Option(help="Times its p99 may be Production's; 0 for no bound. Default: 2."),
    ] = None,
    performance: Annotated[
        bool | None,
        typer.Option(
            "--performance/--no-performance",
            help="Abort where the monitor finds its predictions bad. Default: yes.",
            show_default=False,
        ),
    ] = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Put a version in Staging on trial: a share of the requests goes to it while Production serves on.

    Without options it goes as `promotion.rollout` of the pipeline says. With one, the pipeline is not asked: what is
    not given has its default. It is aborted when it fails too often, is too slow or predicts badly.

    \b
    everloop rollout start flight-delays
    everloop rollout start flight-delays 3 --strategy shadow --percent 100 --bake 2h
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    given = {
        "strategy": strategy,
        "percent": percent,
        "key": key,
        "bake": bake,
        "min_requests": min_requests,
        "abort": _given(
            {
                "error_rate": error_rate,
                "latency_ratio": latency_ratio,
                "performance": performance,
            }
        ),
    }
    plan = _plan(_given(given))
    with connected(ctx) as everloop:
        begun = everloop.start_rollout(
            model,
            version or _newest_staged(everloop, model),
            plan=plan,
            reason=reason,
            actor=getpass.getuser(),
        )
    if as_json:
        print_json(begun)
        return
    console.print(
        f"[green]{model} v{begun.candidate_version} is on trial beside v{begun.baseline_version}[/]"
    )
    console.print(f"how it does: `everloop rollouts {model}`")


@rollout.command()
def promote(
    ctx: typer.Context, model: ModelArgument, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """End the trial that runs: its version goes into Production now.

    \b
    everloop rollout promote flight-delays --reason "better in winter"
    """  # noqa: D301 - the backspace keeps the lines apart
    _end(ctx, model, promote=True, reason=reason, as_json=as_json)


@rollout.command()
def abort(
    ctx: typer.Context, model: ModelArgument, reason: ReasonOption = "", as_json: JsonOption = False
) -> None:
    """End the trial that runs: its version is taken back and rejected, Production serves on.

    \b
    everloop rollout abort flight-delays --reason "complaints"
    """  # noqa: D301 - the backspace keeps the lines apart
    _end(ctx, model, promote=False, reason=reason, as_json=as_json)


def _end(ctx: typer.Context, model: str, *, promote: bool, reason: str, as_json: bool) -> None:
    from everloop.cli.output import console, print_json

    with connected(ctx) as everloop:
        trials = everloop.trials(model)
        if not trials:
            require_known(everloop, model)
            raise EverloopError(
                "NO_ROLLOUT",
                f"no version of {model} is on trial",
                f"`everloop rollouts {model}` shows how earlier trials ended",
            )
        ended = everloop.end_rollout(
            trials[0].rollout.id, promote=promote, reason=reason, actor=getpass.getuser()
        )
    if as_json:
        print_json(ended)
        return
    done = "is in Production" if promote else "is taken back"
    colour = "green" if promote else "yellow"
    console.print(f"[{colour}]{model} v{ended.candidate_version} {done}[/]")


def _newest_staged(everloop: Everloop, model: str) -> int:
    from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import STAGE_STAGING

    for version in everloop.models(model, limit=500):
        if version.stage == STAGE_STAGING:
            return version.version
    require_known(everloop, model)
    raise EverloopError(
        "NOTHING_IN_STAGING",
        f"no version of {model} is in Staging",
        "with `approval: automatic` a version that passed its gates goes on by itself",
    )


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value not in (None, {})}


def _plan(given: dict[str, Any]) -> registry_pb2.RolloutPlan | None:
    """The plan that the options make; None if there are none."""
    if not given:
        return None
    from pydantic import ValidationError

    from everloop_contracts.pipeline import Rollout
    from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2

    if given.get("abort", {}).get("latency_ratio") == 0:
        given["abort"]["latency_ratio"] = None
    try:
        spec = Rollout.model_validate({"strategy": "canary"} | given)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        raise EverloopError(
            "INVALID_OPTION", f"--{option}: {first['msg']}", "see `everloop rollout start --help`"
        ) from error
    plan = registry_pb2.RolloutPlan(
        strategy=registry_pb2.RolloutStrategy.Value(f"ROLLOUT_STRATEGY_{spec.strategy.upper()}"),
        percent=spec.percent,
        key=spec.key,
        min_requests=spec.min_requests,
        max_error_rate=spec.abort.error_rate,
        max_latency_ratio=spec.abort.latency_ratio or 0.0,
        abort_on_performance=spec.abort.performance,
    )
    plan.bake.FromTimedelta(spec.bake)
    return plan


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=PANEL)(rollouts)
    app.add_typer(rollout, name="rollout", rich_help_panel=PANEL)
