"""Rows of the real tables that ``vega_datasets`` ships inside its package (no download)."""

from __future__ import annotations

import csv
import importlib.util
import json
from functools import cache
from pathlib import Path

from vlm_lora.errors import ConfigError

Row = dict[str, object]


class MissingTablesError(ConfigError):
    """``vega_datasets`` is not installed."""


def tables_folder() -> Path:
    """The folder of ``vega_datasets`` that holds its local data files."""
    # find_spec, not import: importing vega_datasets pulls in pandas, which the demo does not need.
    spec = importlib.util.find_spec("vega_datasets")
    if spec is None or spec.origin is None:
        raise MissingTablesError(
            "The demo draws its charts from the tables of vega_datasets, which is not installed. Type: "
            "pip install vega_datasets"
        )
    return Path(spec.origin).parent / "_data"


@cache
def load_table(name: str) -> tuple[Row, ...]:
    """The rows of one table, for example ``"cars.json"`` or ``"stocks.csv"``."""
    path = tables_folder() / name
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))
        return tuple(dict(row) for row in rows)
    with path.open(encoding="utf-8", newline="") as stream:
        return tuple(dict(row) for row in csv.DictReader(stream))


def text_values() -> list[str]:
    """Every distinct text value of the tables that has names in them, sorted."""
    columns = (
        ("barley.json", "variety"),
        ("barley.json", "site"),
        ("burtin.json", "Bacteria"),
        ("cars.json", "Name"),
        ("cars.json", "Origin"),
        ("iowa-electricity.csv", "source"),
        ("iris.json", "species"),
        ("la-riots.csv", "first_name"),
        ("la-riots.csv", "last_name"),
        ("la-riots.csv", "neighborhood"),
        ("seattle-weather.csv", "weather"),
        ("stocks.csv", "symbol"),
        ("airports.csv", "city"),
        ("airports.csv", "state"),
    )
    return sorted({str(row[column]) for name, column in columns for row in load_table(name) if row[column]})
