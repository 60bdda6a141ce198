"""Records from files: CSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everloop.errors import EverloopError
from everloop_contracts.pipeline import FieldType, PipelineError, load_pipelines

__all__ = ["RecordFile", "field_types", "open_records"]

Record = Mapping[str, Any] | bytes
Types = Mapping[str, FieldType]


@dataclass(frozen=True)
class RecordFile:
    """A file of records.

    Attributes:
        total: Records in it; of a CSV file with line breaks inside of values, at most.
        records: Reads them, one after the other: mappings, or JSON objects as bytes.
    """

    total: int
    records: Iterator[Record]


def field_types(pipeline: str, folder: str) -> Types:
    """Returns the type of each field of a pipeline, which the text of a CSV file does not tell.

    Raises:
        EverloopError: reason PIPELINE_NOT_FOUND, BROKEN_PIPELINE.
    """
    try:
        found = load_pipelines(Path(folder)) if folder else {}
    except PipelineError as error:
        raise EverloopError("BROKEN_PIPELINE", str(error), "repair the file") from error
    if pipeline not in found:
        raise EverloopError(
            "PIPELINE_NOT_FOUND",
            f"a CSV file has no types, and the file of pipeline '{pipeline}' is not in {folder or 'any known folder'}",
            "set EVERLOOP_PIPELINES_DIR, or push JSON Lines or Parquet",
        )
    return {name: spec.type for name, spec in found[pipeline].schema_.fields.items()}


def open_records(path: Path, types: Callable[[], Types]) -> RecordFile:
    """Opens a file by its name's ending.

    Args:
        path: `.csv`, `.jsonl`, `.ndjson`, `.json` (one object per line) or `.parquet`.
        types: Tells the type of each field; asked for CSV files only.

    Raises:
        EverloopError: reason FILE_NOT_READABLE, UNKNOWN_FORMAT, NOT_INSTALLED.
    """
    ending = path.suffix.lower()
    try:
        if ending == ".csv":
            return RecordFile(max(_lines(path) - 1, 0), _csv(path, types()))
        if ending in (".jsonl", ".ndjson", ".json"):
            return RecordFile(_lines(path), _json_lines(path))
        if ending in (".parquet", ".pq"):
            return _parquet(path)
    except OSError as error:
        raise EverloopError(
            "FILE_NOT_READABLE",
            f"{path} cannot be read: {error.strerror or error}",
            "check the path",
        ) from error
    raise EverloopError(
        "UNKNOWN_FORMAT", f"'{path.name}' is of no known format", "use .csv, .jsonl or .parquet"
    )


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for line in file:
            if stripped := line.strip():
                yield stripped


def _csv(path: Path, types: Types) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            yield {
                name: _value(text, types.get(name))
                for name, text in row.items()
                if name is not None
            }


def _value(text: str | None, kind: FieldType | None) -> Any:
    """Reads a cell; what does not fit its type stays text, so that the record is rejected with the field's name."""
    if text is None or text == "":
        return None
    try:
        if kind is FieldType.INT:
            return int(text)
        if kind is FieldType.FLOAT:
            number = float(text)
            return number if math.isfinite(number) else None
        if kind is FieldType.BOOL and text.lower() in ("true", "false"):
            return json.loads(text.lower())
    except ValueError:
        pass
    return text


def _parquet(path: Path) -> RecordFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise EverloopError(
            "NOT_INSTALLED", "Parquet files need pyarrow", "install it: `pip install pyarrow`"
        ) from error
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise EverloopError("FILE_NOT_READABLE", f"{path} is not Parquet: {error}") from error
    batches = file.iter_batches(batch_size=2000)
    return RecordFile(
        file.metadata.num_rows, (row for batch in batches for row in batch.to_pylist())
    )
