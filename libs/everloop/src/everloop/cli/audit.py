"""`audit list` and `audit verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from everloop.cli.context import JsonOption, connected, require_known
from everloop.cli.models import PANEL

__all__ = ["add_to"]

VERIFY_SECONDS = 600.0
"""The service reads the whole trail."""

audit = typer.Typer(
    help="""Show what was done to models, by whom and why, and check that nobody changed the record of it.

    \b
    everloop audit list flight-delays
    everloop audit verify
    """,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@audit.command("list")
def list_entries(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model; default: all.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List what was done to models, newest first.

    \b
    everloop audit list flight-delays
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import print_json, table, when

    with connected(ctx) as everloop:
        found = everloop.audit(model, limit=limit)
        if model and not found:
            require_known(everloop, model)
    if as_json:
        print_json(found)
        return
    table(
        ("entry#", "model", "version", "action", "by", "why", "because of", "time"),
        (
            (
                str(item.id),
                item.model,
                f"v{item.version}",
                item.action,
                escape(item.actor),
                escape(item.reason),
                escape(item.cause_id),
                when(item.time),
            )
            for item in found
        ),
        empty="nothing was done yet",
    )


@audit.command()
def verify(
    ctx: typer.Context,
    head: Annotated[
        str,
        typer.Option(
            help="A link that an earlier run printed: finds a trail that was cut off or made anew since."
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Follow the audit trail's hash chain. Exit code 1 names the first entry that does not fit.

    \b
    everloop audit verify
    everloop audit verify --head 6f1c…
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json

    with connected(ctx, timeout=VERIFY_SECONDS) as everloop:
        found = everloop.verify_audit(head)
    if as_json:
        print_json(found)
    elif found.intact:
        console.print(f"[green]{found.entries} entries, each as it was written[/]")
        console.print(
            f"keep this elsewhere for `everloop audit verify --head`: {found.head}",
            soft_wrap=True,
            markup=False,
        )
    else:
        where = f"entry {found.broken_entry}: " if found.broken_entry else ""
        console.print(
            f"{where}{found.problem}; {found.entries} entries before fit",
            soft_wrap=True,
            markup=False,
            style="red",
        )
    raise typer.Exit(0 if found.intact else 1)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(audit, name="audit", rich_help_panel=PANEL)
