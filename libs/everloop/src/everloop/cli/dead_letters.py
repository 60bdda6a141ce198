"""`dead-letters list`, `show` and `replay`."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from everloop.cli.context import JsonOption, connected
from everloop.errors import EverloopError

__all__ = ["add_to"]

_AGO = re.compile(r"^(\d+)([smhd])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

PipelineArgument = Annotated[str, typer.Argument(help="Name of the pipeline.")]
ReasonOption = Annotated[
    str, typer.Option(help="Only with this reason code, WRONG_TYPE for example.")
]
SinceOption = Annotated[
    str,
    typer.Option(help="Only rejected since then: 30m, 2h, 7d, or a time like 2026-03-01T12:00."),
]
UntilOption = Annotated[str, typer.Option(help="Only rejected before then, said the same way.")]

letters = typer.Typer(
    help="""Records that were rejected: list them, look at one, send them again after a fix.

    \b
    everloop dead-letters list flight-delays --since 2h
    everloop dead-letters replay flight-delays --reason OUT_OF_RANGE
    """,
    no_args_is_help=True,
)


@letters.command(name="list")
def list_(
    ctx: typer.Context,
    pipeline: PipelineArgument,
    reason: ReasonOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List rejected records, newest first.

    \b
    everloop dead-letters list flight-delays --reason OUT_OF_RANGE --since 2h
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import print_json, table, when

    with connected(ctx) as everloop:
        found = everloop.dead_letters(
            pipeline, reason=reason, since=_time(since), until=_time(until), limit=limit
        )
    if as_json:
        print_json(found)
        return
    table(
        ("id", "rejected", "reason", "field", "what was wanted", "bytes#", "replayed"),
        (
            (
                item.id,
                when(item.reject_time),
                item.reason,
                escape(item.field),
                escape(item.message),
                f"{item.value_bytes:,}",
                when(item.replay_time),
            )
            for item in found
        ),
        empty="no rejected record is kept that fits",
    )


@letters.command()
def show(
    ctx: typer.Context,
    pipeline: PipelineArgument,
    id: Annotated[str, typer.Argument(help="As `dead-letters list` shows it.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Print the original bytes and nothing else.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show one rejected record as it came.

    \b
    everloop dead-letters show flight-delays everloop.records.flight-delays/0/17
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, print_json, when

    with connected(ctx) as everloop:
        found = everloop.dead_letter(pipeline, id)
    if raw:
        sys.stdout.buffer.write(found.value)
        return
    if as_json:
        print_json(found)
        return
    lines = [
        ("id", found.id),
        ("reason", f"{found.reason}  {found.field}".strip()),
        ("wanted", found.message),
        ("sent", when(found.message_time)),
        ("rejected", when(found.reject_time)),
        ("key", found.key.decode(errors="backslashreplace")),
        *(
            (f"header {item.name}", item.value.decode(errors="backslashreplace"))
            for item in found.headers
        ),
        ("replay of", found.replay_of),
        ("replayed", f"{when(found.replay_time)}  {found.replay_request_id}".strip()),
    ]
    for name, text in lines:
        if text:
            console.print(f"[bold]{escape(name)}[/]  {escape(text)}", soft_wrap=True)
    console.print(escape(found.value.decode(errors="backslashreplace")), soft_wrap=True)


@letters.command()
def replay(
    ctx: typer.Context,
    pipeline: PipelineArgument,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids; or say which by the options.")
    ] = None,
    reason: ReasonOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    everything: Annotated[bool, typer.Option("--all", help="All that are kept.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send rejected records again after a fix, through the topic they came by; each goes once, however often one asks.

    \b
    everloop dead-letters replay flight-delays --reason OUT_OF_RANGE
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    chosen = bool(reason or since or until)
    if bool(ids) + chosen + everything != 1:
        raise EverloopError(
            "INVALID_ARGUMENT",
            "which ones? Name ids, or say --reason, --since or --until, or --all",
            f"`everloop dead-letters list {pipeline}` shows them",
        )
    with connected(ctx) as everloop:
        replayed, skipped = everloop.replay_dead_letters(
            pipeline, ids or (), reason=reason, since=_time(since), until=_time(until)
        )
    if as_json:
        print_json({"replayed": replayed, "skipped": skipped})
        return
    stay = f", {skipped:,} stay: replayed before, or too large" if skipped else ""
    console.print(f"[green]{replayed:,} replayed[/]{stay}")


def _time(text: str) -> datetime | None:
    """A time from what a person says: how long ago, or when."""
    if not text:
        return None
    if match := _AGO.match(text):
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        except OverflowError:
            pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise EverloopError(
            "INVALID_ARGUMENT", f"'{text}' is no time", "say 30m, 2h, 7d or 2026-03-01T12:00"
        ) from error


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(letters, name="dead-letters", rich_help_panel="Data")
