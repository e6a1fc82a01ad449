"""Cuts the real tables into small groups of named values, one group per possible chart.

The held-out rule: every group belongs to a *record* of its table (one date, one field trial, or a
block of consecutive rows), and a hash of the record decides which split may use it. No row of a
table is therefore seen in training and drawn in validation. Where two records happen to hold the
same names with the same values, :mod:`vlm_lora.demo.charts` drops the validation chart.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from vlm_lora.demo.tables import Row, load_table

MAX_NAME = 9
"""Longest category name, in characters."""
_BLOCK = 10
"""Rows per record where a table has no natural one."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Named values of one record that may be drawn as bars of one chart."""

    table: str
    record: str
    names: tuple[str, ...]
    values: tuple[str, ...]
    """As printed on the chart, for example ``"39.81"``."""

    @property
    def held_out(self) -> bool:
        """Whether only validation charts may use this group (one record in five)."""
        return zlib.crc32(f"{self.table}/{self.record}".encode()) % 5 == 0


@cache
def all_groups() -> tuple[Group, ...]:
    """Every group of at least two bars, in a fixed order."""
    readers: tuple[Callable[[], Iterator[Group]], ...] = (
        _airports,
        _barley,
        _cars,
        _crimea,
        _electricity,
        _employment,
        _ohlc,
        _stocks,
        _temperatures,
        _weather,
    )
    return tuple(group for reader in readers for group in reader() if len(group.names) >= 2)


def as_text(value: object, *, decimals: int = 1) -> str:
    """A table's number as a chart prints it: rounded, without trailing zeros."""
    text = f"{float(str(value)):.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _group(table: str, record: str, pairs: list[tuple[str, str]]) -> Group:
    """Keep the first of equal names, and only positive values that have a bar."""
    kept: dict[str, str] = {}
    for name, value in pairs:
        clean = name.strip()
        known = {other.lower() for other in kept}
        fits = 2 <= len(clean) <= MAX_NAME and clean.isalnum() and clean.lower() not in known
        if fits and float(value) > 0:
            kept[clean] = value
    return Group(table=table, record=record, names=tuple(kept), values=tuple(kept.values()))


def _blocks(rows: tuple[Row, ...]) -> Iterator[tuple[str, tuple[Row, ...]]]:
    for start in range(0, len(rows), _BLOCK):
        yield f"rows {start}-{start + _BLOCK - 1}", rows[start : start + _BLOCK]


def _airports() -> Iterator[Group]:
    """Latitude and longitude (degrees west) of the airports of American cities."""
    for record, rows in _blocks(load_table("airports.csv")):
        for column in ("latitude", "longitude"):
            pairs = [(str(row["city"]), as_text(abs(float(str(row[column]))))) for row in rows]
            yield _group("airports", record, pairs)


def _barley() -> Iterator[Group]:
    """Yields of barley varieties in one field trial."""
    trials: dict[str, list[tuple[str, str]]] = {}
    for row in load_table("barley.json"):
        record = f"{row['site']} {row['year']}"
        trials.setdefault(record, []).append((str(row["variety"]), as_text(row["yield"])))
    for record, pairs in trials.items():
        yield _group("barley", record, pairs)


def _cars() -> Iterator[Group]:
    """Properties of car models; a model is called by the last word of its name."""
    columns = ("Miles_per_Gallon", "Horsepower", "Weight_in_lbs", "Displacement", "Acceleration")
    for record, rows in _blocks(load_table("cars.json")):
        for column in columns:
            pairs = [
                (str(row["Name"]).split()[-1].capitalize(), as_text(row[column]))
                for row in rows
                if row[column] is not None and str(row["Name"]).split()[-1].isalpha()
            ]
            yield _group("cars", record, pairs)


def _crimea() -> Iterator[Group]:
    """Deaths in the Crimean war by cause, one record per month."""
    for row in load_table("crimea.json"):
        pairs = [(key.capitalize(), as_text(row[key])) for key in ("wounds", "other", "disease")]
        yield _group("crimea", str(row["date"]), pairs)


def _electricity() -> Iterator[Group]:
    """Iowa's electricity by source, in gigawatt hours, one record per year."""
    years: dict[str, list[tuple[str, str]]] = {}
    for row in load_table("iowa-electricity.csv"):
        name = str(row["source"]).split()[0]
        years.setdefault(str(row["year"]), []).append((name, as_text(row["net_generation"])))
    for record, pairs in years.items():
        yield _group("iowa-electricity", record, pairs)


def _employment() -> Iterator[Group]:
    """American jobs by industry, in thousands, one record per month."""
    names = {
        "mining_and_logging": "Mining",
        "construction": "Building",
        "wholesale_trade": "Trade",
        "retail_trade": "Retail",
        "utilities": "Power",
        "information": "Media",
        "financial_activities": "Finance",
        "other_services": "Other",
        "government": "State",
        "manufacturing": "Industry",
    }
    for row in load_table("us-employment.csv"):
        pairs = [(name, as_text(row[key], decimals=0)) for key, name in names.items()]
        yield _group("us-employment", str(row["month"]), pairs)


def _ohlc() -> Iterator[Group]:
    """A share's four prices on one day."""
    for row in load_table("ohlc.json"):
        pairs = [(key.capitalize(), as_text(row[key], decimals=2)) for key in ("open", "high", "low", "close")]
        yield _group("ohlc", str(row["date"]), pairs)


def _stocks() -> Iterator[Group]:
    """Prices of shares on one day."""
    days: dict[str, list[tuple[str, str]]] = {}
    for row in load_table("stocks.csv"):
        pair = (str(row["symbol"]), as_text(row["price"], decimals=2))
        days.setdefault(str(row["date"]), []).append(pair)
    for record, pairs in days.items():
        yield _group("stocks", record, pairs)


def _temperatures() -> Iterator[Group]:
    """Temperatures (degrees Fahrenheit) at some hours of one day in two cities."""
    hours = {3: "3am", 6: "6am", 9: "9am", 12: "Noon", 15: "3pm", 18: "6pm", 21: "9pm"}
    for table in ("seattle-temps.csv", "sf-temps.csv"):
        days: dict[str, list[tuple[str, str]]] = {}
        for row in load_table(table):
            day, clock = str(row["date"]).split()
            hour = int(clock.split(":")[0])
            if hour in hours:
                days.setdefault(day, []).append((hours[hour], as_text(row["temp"])))
        for record, pairs in days.items():
            yield _group(table.removesuffix(".csv"), record, pairs)


def _weather() -> Iterator[Group]:
    """Weather in Seattle by day of one week."""
    weeks: dict[str, list[tuple[str, Row]]] = {}
    for row in load_table("seattle-weather.csv"):
        day = datetime.datetime.strptime(str(row["date"]), "%Y/%m/%d").date()
        week = "-".join(str(part) for part in day.isocalendar()[:2])
        weeks.setdefault(week, []).append((day.strftime("%a"), row))
    for record, rows in weeks.items():
        for column in ("temp_max", "temp_min", "wind"):
            pairs = [(name, as_text(row[column])) for name, row in rows]
            yield _group("seattle-weather", record, pairs)
