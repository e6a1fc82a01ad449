"""The data report as one HTML page: figures and histograms, bad rows, and the rows that it names with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_lora.preflight.figures import DataReport
from vlm_lora.report.pages.pictures import picture
from vlm_lora.report.pages.rendering import render
from vlm_lora.report.run_page.stored_images import StoredImages

SIDE = 320
"""Largest side of a thumbnail in pixels."""
MOST_BAD = 30
"""Bad rows that are shown with their images; all are listed."""


def render_page(report: DataReport, stored: StoredImages | None = None) -> str:
    """Return the page. Texts of the data are escaped wherever they stand.

    Args:
        report: what was found.
        stored: finds the images of the rows that the report names; None for a page without images.
    """
    content = report.to_mapping()
    named = {
        name: {kind: _with_images(split[kind], stored) for kind in ("longest", "largest")}
        for name, split in content["splits"].items()
    }
    return render(
        "data_page.html.jinja",
        title=f"Data report: {report.data}",
        report=content,
        named=named,
        bad=_with_images(content["bad"], stored, MOST_BAD),
    )


def _with_images(
    rows: Sequence[Mapping[str, Any]], stored: StoredImages | None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return rows, each with its first image that can be read; None where it has none, or beyond so many rows."""
    return [
        {**row, "image": None if stored is None or (most is not None and number >= most) else _image(row, stored)}
        for number, row in enumerate(rows)
    ]


def _image(row: Mapping[str, Any], stored: StoredImages) -> Any:
    found = stored.of([], row["file"], row["row"])
    shown = [one for one in found if one.image is not None]
    if not shown:
        return None
    largest = max(shown, key=lambda one: one.image.width * one.image.height if one.image else 0)
    assert largest.image is not None
    return {"name": largest.name, "shown": picture(largest.image, side=SIDE)}
