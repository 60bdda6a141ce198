"""Whether pipelines can be served as they are declared: what is stored of each must stay readable and where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_contracts.schema import FieldSpec, Schema
from everloop_contracts.spec import Spec
from everloop_ingest.adapters.store.schemas import Schemas
from everloop_ingest.adapters.store.versions import Versions
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "StoredSchema",
    "adopt_pipelines",
    "adopt_schemas",
    "check_record_sizes",
    "check_versioning",
    "misfits",
]

_WIDENED = {(FieldType.INT, FieldType.FLOAT)}
"""Types that a field may go from and to: each value of the first is read as one of the second."""


class StoredSchema(Spec):
    """What ingest remembers of a schema that it has served."""

    schema_: Schema
    target: str


def adopt_pipelines(
    pipelines: Mapping[str, Pipeline],
    schemas: Schemas,
    versions: Versions,
    max_record_bytes: int,
    now: datetime,
) -> None:
    """Returns where every pipeline can be served with what is stored of it, and remembers their schemas.

    Raises:
        EverloopError: kind precondition, reasons RECORD_LIMIT_TOO_LARGE, VERSIONING_CHANGED and SCHEMA_CHANGED: what
            does not fit; nothing is remembered then.
    """
    check_record_sizes(pipelines, max_record_bytes)
    check_versioning(pipelines, versions)
    adopt_schemas(pipelines, schemas, now)


def check_record_sizes(pipelines: Mapping[str, Pipeline], most: int) -> None:
    """Returns where no pipeline asks for larger records than the service takes.

    Raises:
        EverloopError: kind precondition, reason RECORD_LIMIT_TOO_LARGE.
    """
    for pipeline in pipelines.values():
        wanted = pipeline.schema_.max_record_bytes or 0
        if wanted > most:
            raise EverloopError(
                Kind.PRECONDITION,
                "RECORD_LIMIT_TOO_LARGE",
                f"{pipeline.name}: schema.max_record_bytes: {wanted} is more than this service takes, {most} "
                "(EVERLOOP_MAX_RECORD_BYTES)",
            )


def check_versioning(pipelines: Mapping[str, Pipeline], versions: Versions) -> None:
    """Returns where every pipeline's versions are to be kept as those that it has.

    Raises:
        EverloopError: kind precondition, reason VERSIONING_CHANGED.
    """
    for pipeline in pipelines.values():
        newest = versions.newest_published(pipeline.name)
        if newest is None or newest.file is None:
            continue
        kept = "git-lfs" if newest.file.uri.startswith("file://") else "dvc"
        if kept != pipeline.versioning:
            raise EverloopError(
                Kind.PRECONDITION,
                "VERSIONING_CHANGED",
                f"{pipeline.name}: versioning: {pipeline.versioning}, but its versions are kept by {kept}; leave it at "
                "that, or give the pipeline another name",
            )


def adopt_schemas(pipelines: Mapping[str, Pipeline], schemas: Schemas, now: datetime) -> None:
    """Compares each pipeline with the schemas that were served under its name, and remembers it as the newest.

    Raises:
        EverloopError: kind precondition, reason SCHEMA_CHANGED: what does not fit, one line per finding; nothing of
            any pipeline is remembered then.
    """
    found = []
    for name, pipeline in pipelines.items():
        known = {
            version: StoredSchema.model_validate_json(document)
            for version, document in schemas.known(name).items()
        }
        found += [f"{name}: {text}" for text in misfits(pipeline, known)]
    if found:
        raise EverloopError(Kind.PRECONDITION, "SCHEMA_CHANGED", "\n".join(found))
    for name, pipeline in pipelines.items():
        stored = StoredSchema(schema_=pipeline.schema_, target=pipeline.target.field)
        schemas.keep(name, pipeline.schema_.version, stored.model_dump_json(), now)


def misfits(pipeline: Pipeline, known: Mapping[int, StoredSchema]) -> Iterator[str]:
    """What keeps a pipeline's schema from following those that are known, by their numbers."""
    if not known:
        return
    mine, newest = pipeline.schema_, max(known)
    if mine.version < newest:
        yield (
            f"schema.version: {mine.version} is older than {newest}, which data came under; "
            f"to go back, give the earlier schema the number {newest + 1}"
        )
        return
    if mine.version == newest:
        advice = f"set schema.version to {newest + 1}"
        for text in _changes(pipeline, known[newest]):
            yield f"{text}; {advice}"
    for version, stored in known.items():
        yield from _unreadable(mine, version, stored.schema_)


def _changes(pipeline: Pipeline, old: StoredSchema) -> Iterator[str]:
    """What is more than a further nullable field."""
    before, after = old.schema_.fields, pipeline.schema_.fields
    for name in before.keys() - after.keys():
        yield f"schema.fields.{name}: is gone"
    for name, spec in after.items():
        if name in before:
            yield from _differences(f"schema.fields.{name}", before[name], spec, {"description"})
        elif not spec.nullable:
            yield f"schema.fields.{name}: is new and not nullable"
    yield from _differences("schema", old.schema_, pipeline.schema_, {"fields", "version"})
    if pipeline.target.field != old.target:
        yield f"target.field: is {pipeline.target.field}, was {old.target}"


def _differences(
    where: str, old: FieldSpec | Schema, new: FieldSpec | Schema, but: set[str]
) -> Iterator[str]:
    for key in type(new).model_fields.keys() - but:
        before, after = getattr(old, key), getattr(new, key)
        if isinstance(before, Spec | tuple | None) and isinstance(after, Spec | tuple | None):
            if before != after:
                yield f"{where}.{key}: is not what it was"
        elif before != after:
            yield f"{where}.{key}: is {after}, was {before}"


def _unreadable(mine: Schema, version: int, old: Schema) -> Iterator[str]:
    """What stored rows of another version cannot be read as, whatever number this one has."""
    for key in ("id", "time"):
        before, after = getattr(old, key), getattr(mine, key)
        if before != after:
            yield (
                f"schema.{key}: is {after}, was {before} in version {version}: "
                "what names and orders the rows of a pipeline stays; take a new pipeline"
            )
    for name, spec in mine.fields.items():
        if name not in old.fields:
            continue
        change = (old.fields[name].type, spec.type)
        if change[0] != change[1] and change not in _WIDENED:
            yield (
                f"schema.fields.{name}: is of type {change[1]}, was {change[0]} in version {version}: "
                "only int becomes float; give what is of another type another name"
            )
