"""Rows as the model will see them: rendered text, ids, and which tokens are supervised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from vlm_lora.batching.boxes.writing import Region
from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.masks import decode_between

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line break, those that turn the reading direction, and lone surrogates."""


@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row for people to look at, with what a model says of it."""

    row: EncodedRow
    tokenizer: Any
    """Decodes the row's ids."""
    loss: float | None = None
    """Mean negative log-likelihood in nats of the supervised tokens; None where no model was asked."""
    generated: str | None = None
    """The model's own answer; None where it was not asked for one."""
    accepted: tuple[str, ...] = ()
    """What would have been right."""
    generated_boxes: tuple[Region, ...] = ()
    """The boxes and points that the model's own answer names, in pixels of the images as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Rows as the model will see them."""

    rows: Sequence[ShownRow]
    image_size: str
    """How large images are shown, in words."""


def runs(row: EncodedRow) -> Iterator[tuple[int, int, bool]]:
    """Yield `(start, end, supervised)` for each longest stretch of tokens of one kind."""
    supervised = row.labels.ne(IGNORE_INDEX).tolist()
    start = 0
    for position in range(1, len(supervised) + 1):
        if position == len(supervised) or supervised[position] != supervised[start]:
            yield start, position, supervised[start]
            start = position


def row_report(row: EncodedRow, tokenizer: Any) -> dict[str, Any]:
    """Return one row as plain values for `--json`; `pictures` are widths and heights as the processor got them.

    `image_tokens` are 0 where they cannot be told from those of the image next to it.
    """
    ids = row.input_ids.tolist()
    return {
        "source": str(row.source),
        "text": row.text,
        "input_ids": ids,
        "labels": row.labels.tolist(),
        "tokens": len(ids),
        "supervised_tokens": int(row.labels.ne(IGNORE_INDEX).sum()),
        "supervised": [
            {"start": start, "end": end, "text": decode_between(ids, start, end, tokenizer)}
            for start, end, supervised in runs(row)
            if supervised
        ],
        "pictures": [list(picture.size) for picture in row.pictures],
        "image_tokens": list(row.image_tokens),
        "boxes": [region.record() for region in row.regions],
        "overflow": row.overflow,
        "tensors": {name: list(value.shape) for name, value in {**row.token_tensors, **row.media}.items()},
    }


def print_row(row: EncodedRow, tokenizer: Any, console: Console) -> None:
    """Print one row with supervised tokens in green; repeated tokens are counted instead of repeated."""
    report = row_report(row, tokenizer)
    title = f"{report['source']}: {report['tokens']} tokens, {report['supervised_tokens']} supervised"
    console.rule()
    console.print(Text(visible(title), style="bold"))  # in the rule itself a long path would be cut
    for start, end, supervised in runs(row):
        text = decode_folded(row.input_ids.tolist(), start, end, tokenizer)
        console.print(Text(visible(text), style="bold green" if supervised else "dim"), end="")
    console.print()
    if row.overflow:
        console.print(Text(f"  {row.overflow}.", style="yellow"))
    for number, (width, height) in enumerate(report["pictures"], start=1):
        tokens = report["image_tokens"][number - 1] if report["image_tokens"] else 0
        line = f"  image {number}: {width}x{height} pixels" + (f", {tokens} tokens" if tokens else "")
        console.print(line, style="dim", markup=False, highlight=False)
    for name, shape in report["tensors"].items():
        console.print(f"  {name}: {tuple(shape)}", style="dim", markup=False, highlight=False)


def print_figures(shown: ShownRow, console: Console) -> None:
    """Print what a model says of a row: its loss, and its answer next to the expected one."""
    if shown.loss is not None:
        console.print(f"  loss: {shown.loss:.4f}", markup=False)
    if shown.generated is not None:
        console.print(Text(f"  answer: {visible(shown.generated)}"))
        console.print(Text(f"  expected: {visible(' | '.join(shown.accepted))}"))
    if shown.generated_boxes:
        records = json.dumps([region.record() for region in shown.generated_boxes], ensure_ascii=False)
        console.print(Text(f"  boxes of the answer, in pixels of the image as it is stored: {visible(records)}"))


def visible(text: str) -> str:
    r"""Return the text with characters that would not be seen, or would act on a terminal, written out.

    >>> visible("a\x1b[31m\u202eb")
    'a␛[31m[U+202E]b'
    """

    def written(match: re.Match[str]) -> str:
        code = ord(match[0])
        if code < 0x20:
            return chr(0x2400 + code)
        return "\u2421" if code == 0x7F else f"[U+{code:04X}]"

    return _UNSEEN.sub(written, text)


def decode_folded(ids: Sequence[int], start: int, end: int, tokenizer: Any) -> str:
    """Decode `ids[start:end]`, writing a placeholder that repeats four times or more once with its count, as `×12`.

    A text's own tokens are shown as they are: digits repeat, too.
    """
    pieces: list[str] = []
    pending = position = start
    while position < end:
        last = position
        while last < end and ids[last] == ids[position]:
            last += 1
        if last - position >= 4 and (ids[position] < 0 or ids[position] in tokenizer.added_tokens_decoder):
            # Phi-3-Vision's placeholders are negative ids, which no tokenizer names.
            name = decode_between(ids, position, position + 1, tokenizer) or f"[{ids[position]}]"
            pieces += (decode_between(ids, pending, position, tokenizer), f"{name}×{last - position}")
            pending = last
        position = last
    return "".join([*pieces, decode_between(ids, pending, end, tokenizer)])
