"""`predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from everloop.cli.context import JsonOption, connected
from everloop.errors import EverloopError

__all__ = ["add_to"]

BATCH = 500


def predict(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model, which is its pipeline's.")],
    row: Annotated[
        list[str] | None, typer.Option("--row", help="One row as a JSON object; may be repeated.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="JSON Lines: one row per line.")
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Over HTTP instead of gRPC.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Predict rows with the version in Production.

    \b
    everloop predict flight-delays --row '{"carrier": "UA", ...}'
    everloop predict flight-delays --file rows.jsonl --http
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import print_json, table

    rows = _rows(row or [], file)
    with connected(ctx) as everloop:
        answers = [
            everloop.predict(model, rows[start : start + BATCH], http=http)
            for start in range(0, len(rows), BATCH)
        ]
    if as_json:
        print_json(
            [
                {"version": answer.version, **vars(item)}
                for answer in answers
                for item in answer.predictions
            ]
        )
        return
    table(
        ("prediction", "version", "label", "score#"),
        (
            (item.id, f"v{answer.version}", item.label, f"{item.score:.4f}")
            for answer in answers
            for item in answer.predictions
        ),
        empty="no rows",
    )


def _rows(texts: list[str], file: Path | None) -> list[dict[str, Any]]:
    sources = [(f"--row {number}", text) for number, text in enumerate(texts, start=1)]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise EverloopError("FILE_NOT_READABLE", f"{file} cannot be read: {error}") from error
        sources += [(f"{file}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not sources:
        raise EverloopError(
            "NO_ROWS", "there is nothing to predict", "give --row '{...}' or --file"
        )
    rows = []
    for where, text in sources:
        try:
            row = json.loads(text)
        except ValueError as error:
            raise EverloopError("MALFORMED_JSON", f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise EverloopError("MALFORMED_JSON", f"{where}: a row is a JSON object")
        rows.append(row)
    return rows


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Models")(predict)
