"""Rows as one self-contained HTML page: no script, nothing from outside, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from vlm_lora.batching.masks import decode_between
from vlm_lora.config.whole_files import write_whole
from vlm_lora.errors import ConfigError
from vlm_lora.report.preview import ShownRow, decode_folded, row_report, runs, visible

TEMPLATE = Path(__file__).with_name("page.html.jinja")
SHOWN_SIDE = 640
"""Images are shown at most this many pixels wide and high."""


def write_page(path: Path, rows: Sequence[ShownRow], *, title: str) -> None:
    """Write the page of these rows to `path`.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = render_page(rows, title=title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Name another file or folder.") from error


def render_page(rows: Sequence[ShownRow], *, title: str) -> str:
    """Return the page as HTML text.

    Each stretch of tokens is a `<span>` of class `supervised` or `context`, with its token positions in `data-start`
    and `data-end`. A supervised stretch is written in full; elsewhere a repeated token is counted.
    Boxes are drawn over the images as they are read out of the texts: expected ones, and those of the model's answer.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=visible(title), rows=[_described(shown) for shown in rows])


def _described(shown: ShownRow) -> dict[str, Any]:
    """Return what the template shows of one row."""
    report = row_report(shown.row, shown.tokenizer)
    answered = shown.generated is not None
    return {
        "source": visible(report["source"]),
        "tokens": report["tokens"],
        "supervised_tokens": report["supervised_tokens"],
        "overflow": visible(shown.row.overflow),
        "stretches": list(map(_stretched(shown), runs(shown.row))),
        "pictures": [
            {**_image(picture), "drawn": _drawn(shown, number)} for number, picture in enumerate(shown.row.pictures)
        ],
        "tensors": {name: tuple(shape) for name, shape in report["tensors"].items()},
        "loss": None if shown.loss is None else f"{shown.loss:.4f}",
        "generated": visible(shown.generated or "") if answered else None,
        "accepted": [visible(text) for text in shown.accepted],
    }


def _stretched(shown: ShownRow) -> Any:
    ids = shown.row.input_ids.tolist()

    def described(stretch: tuple[int, int, bool]) -> dict[str, Any]:
        start, end, supervised = stretch
        decode = decode_between if supervised else decode_folded
        text = visible(decode(ids, start, end, shown.tokenizer))
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
                found.append({"kind": kind, "label": visible(region.label or ""), **_shape(scaled)})
    return found


def _shape(numbers: Sequence[float]) -> dict[str, float]:
    """Return where an SVG rectangle stands; a point is one without width and height, which its stroke shows."""
    xs, ys = numbers[::2], numbers[1::2]
    x, y = min(xs), min(ys)
    return {"x": round(x, 2), "y": round(y, 2), "width": round(max(xs) - x, 2), "height": round(max(ys) - y, 2)}


def _image(picture: Image.Image) -> dict[str, Any]:
    """Return an image's size, and a smaller copy as a data URI: PNG or JPEG, whichever is shorter."""
    width, height = picture.size
    copy = picture.convert("RGB")
    copy.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    encoded: dict[str, bytes] = {}
    for kind in ("png", "jpeg"):
        target = BytesIO()
        copy.save(target, kind.upper(), **({"quality": 90} if kind == "jpeg" else {}))
        encoded[kind] = target.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    uri = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode('ascii')}"
    return {"width": width, "height": height, "uri": uri}
