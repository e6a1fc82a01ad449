"""The page of several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lora.config.whole_files import write_whole
from vlm_lora.errors import ConfigError
from vlm_lora.report.comparison.compared import Against, Changed, Comparison, verdict
from vlm_lora.report.pages.rendering import render
from vlm_lora.report.run_page.answers import MOST, Album, shortened
from vlm_lora.report.run_page.drawing import draw
from vlm_lora.report.run_page.page import MOST_BYTES, ROOM
from vlm_lora.report.run_page.stored_images import StoredImages


def write_comparison(comparison: Comparison, output: Path, *, images: bool = True) -> None:
    """Write the page.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, render_comparison(comparison, images=images))
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror}. Name another file or folder.") from error


def render_comparison(comparison: Comparison, *, images: bool = True) -> str:
    """Return the page as HTML text of at most `MOST_BYTES`, with as many images as fit."""
    stored = StoredImages(comparison.runs[0].settings, comparison.runs[0].directory) if images else None
    album = Album(stored, ROOM)
    each = MOST // len(comparison.against)
    text = render(
        "comparison/compare.html.jinja",
        title=" and ".join(comparison.names),
        it=comparison,
        first=comparison.names[0],
        charts=[(chart, numbers, draw(chart, colours=numbers)) for chart, numbers in comparison.charts],
        against=[
            (one, _tests(one), [_described(row, album) for row in one.changed[:each]]) for one in comparison.against
        ],
        images=images,
        base=str(comparison.runs[0].directory),
    )
    if len(text.encode("utf-8", "replace")) <= MOST_BYTES or not images:
        return text
    return render_comparison(comparison, images=False)


def _tests(against: Against) -> list[dict[str, Any]]:
    return [
        {"name": name, "paired": paired, "verdict": verdict(name, paired)} for name, paired in against.scores.items()
    ]


def _described(changed: Changed, album: Album) -> dict[str, Any]:
    before, after = changed.before, changed.after
    file, number = before.place
    return {
        "better": changed.better,
        "row": before,
        "file": file,
        "number": number,
        "prompt": None if before.prompt is None else shortened(before.prompt),
        "accepted": [shortened(text) for text in before.accepted[:10]],
        "before": shortened(before.generated),
        "after": shortened(after.generated),
        "images": album.of(before),
    }
