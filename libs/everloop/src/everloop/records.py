"""Records from files: CSV, JSON Lines and Parquet."""

from __future__ import annotations

import csv
import json
import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everloop.errors import EverloopError
from everloop_contracts.pipeline import FieldType, PipelineError, load_pipelines

__all__ = ["RecordFile", "field_types", "open_records"]

Record = Mapping[str, Any] | bytes
Types = Mapping[str, FieldType]
BEYOND = "(beyond the header)"
"""Field that holds what a line of a CSV file has more than its header: the schema has none of that name."""


@dataclass(frozen=True)
class RecordFile:
    """A file of records.

    Attributes:
        total: Records in it; of a CSV file with line breaks inside of values, at most.
        records: Reads them, one after the other: mappings, or JSON objects as bytes. Raises EverloopError, reason
            FILE_NOT_READABLE, where the file breaks off.
        place: Says where in the file the record at a position (0, 1, …) is, of those read so far.
    """

    total: int
    records: Iterator[Record]
    place: Callable[[int], str]


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
            return _csv(path, types())
        if ending in (".jsonl", ".ndjson", ".json"):
            return _json_lines(path)
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


def _json_lines(path: Path) -> RecordFile:
    lines = array("Q")

    def read() -> Iterator[Record]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if stripped := line.strip():
                    lines.append(number)
                    yield stripped

    with path.open("rb") as file:
        total = 0
        for line in file:
            if not total and line.lstrip().startswith(b"["):
                raise EverloopError(
                    "UNKNOWN_FORMAT",
                    f"{path} holds a JSON array, not one object per line",
                    f"write it as lines: `jq -c '.[]' {path.name} > {path.stem}.jsonl`",
                )
            total += bool(line.strip())
    return RecordFile(total, read(), lambda position: f"line {lines[position]}")


def _csv(path: Path, types: Types) -> RecordFile:
    lines = array("Q")

    def read() -> Iterator[Record]:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey=BEYOND)
            try:
                for row in reader:
                    lines.append(reader.line_num)
                    if BEYOND in row:
                        row[BEYOND] = ",".join(row[BEYOND])
                    yield {name: _value(text, types.get(name)) for name, text in row.items()}
            except csv.Error as error:
                line = reader.line_num + 1
                raise EverloopError(
                    "FILE_NOT_READABLE", f"{path}:{line}: not CSV: {error}"
                ) from error

    return RecordFile(
        max(_utf8_lines(path) - 1, 0), read(), lambda position: f"line {lines[position]}"
    )


def _utf8_lines(path: Path) -> int:
    """Returns how many lines are not empty.

    Raises:
        EverloopError: Not UTF-8. It is looked for before a record is sent, so that nothing is half in.
    """
    count = offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise EverloopError(
                    "FILE_NOT_READABLE",
                    f"{path}:{number}: not UTF-8: byte 0x{line[error.start]:02x} at position"
                    f" {offset + error.start} of the file",
                    f"convert it, from Latin-1 for example: `iconv -f latin1 -t utf-8 {path.name} > utf8.csv`",
                ) from error
            offset += len(line)
            count += bool(line.strip())
    return count


def _value(text: str | None, kind: FieldType | None) -> Any:
    """Reads a cell; what does not fit its type stays text, so that the record is rejected with the field's name."""
    if text is None or text == "":
        return None
    try:
        # Python reads 1_000 as a number, no other tool does.
        if kind is FieldType.INT and "_" not in text:
            return int(text)
        if kind is FieldType.FLOAT and "_" not in text:
            number = float(text)
            # JSON has no word for infinity: it stays text, and the record is rejected.
            return None if math.isnan(number) else text if math.isinf(number) else number
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
        raise EverloopError(
            "FILE_NOT_READABLE", f"{path} is not Parquet: {_first_line(error)}"
        ) from error

    def read() -> Iterator[Record]:
        rows = 0
        try:
            for batch in file.iter_batches(batch_size=2000):
                for row in batch.to_pylist():
                    yield row
                    rows += 1
        except (pa.ArrowException, OSError) as error:
            raise EverloopError(
                "FILE_NOT_READABLE", f"{path} breaks off after row {rows}: {_first_line(error)}"
            ) from error

    return RecordFile(file.metadata.num_rows, read(), lambda position: f"row {position + 1}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
