"""`features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.context import JsonOption, home_of
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop_contracts.pipeline import Pipeline

__all__ = ["add_to"]


def features(
    ctx: typer.Context,
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline, or its file.")],
    as_json: JsonOption = False,
) -> None:
    """List the features that a pipeline declares: the fields each is made of, and what training rows teach it.

    \b
    everloop features flight-delays
    everloop features pipelines/mine.yaml
    """  # noqa: D301 - the backspace keeps the lines apart
    from everloop.cli.output import console, print_json, table
    from everloop_contracts.features import LEARNS

    declared = _load(ctx, pipeline)
    fields = declared.schema_.fields
    rows: list[dict[str, Any]] = [
        {
            "feature": name,
            "kind": feature.kind,
            "fields": {source: fields[source].type.value for source in feature.sources},
            "options": feature.model_dump(mode="json", exclude={"kind", "of", "by"}),
            "learns": LEARNS.get(feature.kind, ""),
        }
        for name, feature in declared.features.items()
    ]
    unused = [name for name in fields if name not in declared.inputs]
    if as_json:
        print_json({"pipeline": declared.name, "features": rows, "no_input": unused})
        return
    table(
        ("feature", "kind", "made of", "options", "learns from training rows"),
        (
            (
                row["feature"],
                row["kind"],
                ", ".join(f"{name} ({kind})" for name, kind in row["fields"].items()),
                ", ".join(f"{key} {value}" for key, value in row["options"].items()),
                row["learns"],
            )
            for row in rows
        ),
        empty="",
    )
    console.print(f"no input of the model: {', '.join(unused)}", soft_wrap=True, markup=False)


def _load(ctx: typer.Context, pipeline: str) -> Pipeline:
    from everloop.addresses import Addresses
    from everloop_contracts.pipeline import PipelineError, load_pipeline, load_pipelines

    try:
        if Path(pipeline).is_file():
            return load_pipeline(Path(pipeline))
        folder = Addresses.discover(home_of(ctx)).pipelines_dir
        if not folder:
            raise EverloopError(
                "PIPELINE_NOT_FOUND",
                "the pipelines' files are not on this machine",
                "name a file, or set EVERLOOP_PIPELINES_DIR",
            )
        known = load_pipelines(Path(folder))
    except PipelineError as error:
        raise EverloopError("INVALID_PIPELINE", str(error).splitlines()[0]) from error
    if pipeline not in known:
        names = ", ".join(sorted(known)) or "none yet"
        raise EverloopError("PIPELINE_NOT_FOUND", f"there is no '{pipeline}'; there are: {names}")
    return known[pipeline]


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Models")(features)
