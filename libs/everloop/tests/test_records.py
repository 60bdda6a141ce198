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
    file.write_text("id,seats,distance,late,gate\nx,many,1_0.5,perhaps,B42\ny,1_000,,,\n")
    assert list(open_records(file, lambda: TYPES).records) == [
        {"id": "x", "seats": "many", "distance": "1_0.5", "late": "perhaps", "gate": "B42"},
        {"id": "y", "seats": "1_000", "distance": None, "late": None, "gate": None},
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


def test_an_infinite_cell_stays_text_for_the_service_to_refuse(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("distance\ninf\n-Infinity\nNaN\n")
    found = [row["distance"] for row in open_records(file, lambda: TYPES).records]  # type: ignore[call-overload]
    assert found == ["inf", "-Infinity", None]


def test_cells_beyond_the_header_are_not_lost_in_silence(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("id,seats\nx,1,2,3\n")
    assert list(open_records(file, lambda: TYPES).records) == [
        {"id": "x", "seats": 1, "(beyond the header)": "2,3"}
    ]


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.jsonl", b'{}\n\n{broken\n  \n{"a": 1}\n', ["line 1", "line 3", "line 5"]),
        ("a.csv", b'id\nx\n"two\nlines"\ny\n', ["line 2", "line 4", "line 5"]),
    ],
)
def test_a_record_is_found_in_its_file(tmp_path: Path, name, content, places):
    file = tmp_path / name
    file.write_bytes(content)
    source = open_records(file, lambda: TYPES)
    count = len(list(source.records))
    assert [source.place(position) for position in range(count)] == places


def test_a_csv_that_is_not_utf_8_is_refused_with_the_byte_before_anything_is_read(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_bytes("id,seats\nGraz,1\nWörgl,2\n".encode("latin-1"))
    with pytest.raises(EverloopError) as caught:
        open_records(file, lambda: TYPES)
    assert caught.value.reason == "FILE_NOT_READABLE"
    assert "a.csv:3: not UTF-8: byte 0xf6 at position 17" in caught.value.message
    assert "iconv -f latin1 -t utf-8 a.csv" in caught.value.advice


def test_a_csv_that_breaks_the_format_is_named_with_its_line(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text("id\nx\n" + "y" * 200_000 + "\n")
    with pytest.raises(EverloopError, match=r"a\.csv:3: not CSV"):
        list(open_records(file, lambda: TYPES).records)


def test_a_parquet_file_that_breaks_off_says_after_which_row(tmp_path: Path):
    file = tmp_path / "a.parquet"
    table = pa.table({"id": [f"flight {n}" for n in range(4000)]})
    pq.write_table(table, file, row_group_size=2000, compression="none", use_dictionary=False)
    content = bytearray(file.read_bytes())
    middle = content.index(b"flight 2000")
    content[middle - 60 : middle + 4000] = bytes(4060)
    file.write_bytes(content)
    with pytest.raises(EverloopError, match="breaks off after row 2000") as caught:
        list(open_records(file, no_types).records)
    assert "a.parquet" in caught.value.message


def test_a_json_array_is_no_file_of_lines(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text('\n [{"id": "a"},\n {"id": "b"}]\n')
    with pytest.raises(EverloopError, match="JSON array") as caught:
        open_records(file, no_types)
    assert "jq -c" in caught.value.advice


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
