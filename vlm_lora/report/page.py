"""Rows as one self-contained HTML page: no script, nothing from outside, every text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_lora.batching.masks import decode_between
from vlm_lora.config.whole_files import write_whole
from vlm_lora.errors import ConfigError
from vlm_lora.report.pages.pictures import picture, rectangle
from vlm_lora.report.pages.rendering import render
from vlm_lora.report.preview import ShownRow, decode_folded, row_report, runs


def write_page(path: Path, rows: Sequence[ShownRow], *, title: str, images: bool = True) -> None:
    """Write the page of these rows to `path`, with their images or without.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = render_page(rows, title=title, images=images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file or folder.") from error


def render_page(rows: Sequence[ShownRow], *, title: str, images: bool = True) -> str:
    """Return the page as HTML text.

    Each stretch of tokens is a `<span>` of class `supervised` or `context`, with its token positions in `data-start`
    and `data-end`. A supervised stretch is written in full; elsewhere a repeated token is counted.
    Boxes are drawn over the images as they are read out of the texts: expected ones, and those of the model's answer.
    """
    return render("page.html.jinja", title=title, rows=[_described(shown, images) for shown in rows])


def _described(shown: ShownRow, images: bool) -> dict[str, Any]:
    """Return what the template shows of one row."""
    report = row_report(shown.row, shown.tokenizer)
    return {
        "source": shown.row.source,
        "tokens": report["tokens"],
        "supervised_tokens": report["supervised_tokens"],
        "overflow": shown.row.overflow,
        "stretches": list(map(_stretched(shown), runs(shown.row))),
        "sizes": report["pictures"],
        "pictures": [
            {"shown": picture(image), "drawn": _drawn(shown, number)} for number, image in enumerate(shown.row.pictures)
        ]
        if images
        else [],
        "tensors": {name: tuple(shape) for name, shape in report["tensors"].items()},
        "loss": None if shown.loss is None else f"{shown.loss:.4f}",
        "generated": shown.generated,
        "accepted": shown.accepted,
    }


def _stretched(shown: ShownRow) -> Any:
    ids = shown.row.input_ids.tolist()

    def described(stretch: tuple[int, int, bool]) -> dict[str, Any]:
        start, end, supervised = stretch
        decode = decode_between if supervised else decode_folded
        text = decode(ids, start, end, shown.tokenizer)
        return {"start": start, "end": end, "kind": "supervised" if supervised else "context", "text": text}

    return described


def _drawn(shown: ShownRow, number: int) -> list[dict[str, Any]]:
    """Return the boxes and points of one image, in pixels of the picture as the processor was given it."""
    seen = shown.row.seen[number]
    found = []
    for kind, regions in (("expected", shown.row.regions), ("generated", shown.generated_boxes)):
        for region in regions:
            if region.image == number:
                scaled = [n * seen.given[axis % 2] / seen.size[axis % 2] for axis, n in enumerate(region.numbers)]
                found.append({"kind": kind, "label": region.label or "", **rectangle(scaled)})
    return found
