"""`python -m everloop.demo.parquet FILE`: the flights as one Parquet file, columns as a dataset version has them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from everloop.demo.flights import FIELDS, Flights, MissingData, load

__all__ = ["main", "table_of"]

_TEXTS = frozenset({"flight_id", "carrier", "origin", "destination"})


def table_of(flights: Flights, months: int) -> pa.Table:
    """The flights of the first months, with their labels; times are UTC, in microseconds."""
    count = int(np.count_nonzero(flights.month <= months))  # they are in order
    frame = flights.frame.iloc[:count]
    columns = {
        name: pa.array(frame[name], pa.string() if name in _TEXTS else None, from_pandas=True)
        for name in FIELDS
    }
    departs = pa.array(flights.departs[:count]).cast(pa.timestamp("s", tz="UTC"))
    columns["scheduled_departure"] = departs.cast(pa.timestamp("us", tz="UTC"))
    columns["late"] = pa.array(frame["late"], pa.bool_(), from_pandas=True)
    return pa.table(columns)


def main(arguments: Sequence[str]) -> int:
    """Writes the file; returns the exit status."""
    parser = argparse.ArgumentParser("python -m everloop.demo.parquet")
    parser.add_argument("file", type=Path)
    parser.add_argument("--months", type=int, default=12, help="of 2013, from January on")
    parser.add_argument("--days", type=int, default=None, help="only the first ones of each month")
    options = parser.parse_args(arguments)
    try:
        flights = load(options.days)
    except MissingData as error:
        print(error, file=sys.stderr)
        return 1
    options.file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table_of(flights, options.months), options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
