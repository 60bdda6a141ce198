"""Records from files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everloop.errors import EverloopError
from everloop.records import field_types, open_records
from everloop_contracts.pipeline import FieldType

TYPES = {
    "id": FieldType.STRING,
    "seats": FieldType.INT,
    "distance": FieldType.FLOAT,
    "late": FieldType.BOOL,
}


def no_types():
    raise AssertionError("only a CSV file needs types")


def test_csv_cells_get_the_types_of_the_schema(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("\ufeffid,seats,distance,late\n007,149,1400.5,TRUE\n008,,nan,\n")
    source = open_records(file, lambda: TYPES)
    assert source.total == 2
    assert list(source.records) == [
        {"id": "007", "seats": 149, "distance": 1400.5, "late": True},
        {"id": "008", "seats": None, "distance": None, "late": None},
    ]


def test_a_cell_that_does_not_fit_stays_as_it_is_for_the_service_to_name(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("id,seats,late,gate\nx,many,perhaps,B42\n")
    assert list(open_records(file, lambda: TYPES).records) == [
        {"id": "x", "seats": "many", "late": "perhaps", "gate": "B42"}
    ]


def test_json_lines_go_on_untouched_broken_ones_too(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"id": "a"}\n\n{broken\n')
    source = open_records(file, no_types)
    assert source.total == 2
    assert list(source.records) == [b'{"id": "a"}', b"{broken"]


def test_parquet_rows_are_records(tmp_path: Path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "seats": [149, None]}), file)
    source = open_records(file, no_types)
    assert source.total == 2
    assert list(source.records) == [{"id": "a", "seats": 149}, {"id": "b", "seats": None}]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xlsx", b"", "UNKNOWN_FORMAT"),
        ("a.parquet", b"not parquet", "FILE_NOT_READABLE"),
        ("missing.csv", None, "FILE_NOT_READABLE"),
        ("missing.parquet", None, "FILE_NOT_READABLE"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, name, content, reason):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EverloopError) as caught:
        open_records(file, lambda: TYPES)
    assert caught.value.reason == reason
    assert name in caught.value.message


def test_a_csv_of_an_unknown_pipeline_says_what_to_do(tmp_path: Path):
    with pytest.raises(EverloopError) as caught:
        field_types("nothing", str(tmp_path))
    assert caught.value.reason == "PIPELINE_NOT_FOUND"
    assert "JSON Lines" in caught.value.advice
