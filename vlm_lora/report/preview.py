"""Rows as the model will see them: rendered text, ids, and which tokens are supervised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow
from vlm_lora.batching.masks import decode_between


def runs(row: EncodedRow) -> Iterator[tuple[int, int, bool]]:
    """Yield `(start, end, supervised)` for each longest stretch of tokens of one kind."""
    supervised = row.labels.ne(IGNORE_INDEX).tolist()
    start = 0
    for position in range(1, len(supervised) + 1):
        if position == len(supervised) or supervised[position] != supervised[start]:
            yield start, position, supervised[start]
            start = position


def row_report(row: EncodedRow, tokenizer: Any) -> dict[str, Any]:
    """Return one row as plain values for `--json`."""
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
        "tensors": {name: list(value.shape) for name, value in {**row.token_tensors, **row.media}.items()},
    }


def print_row(row: EncodedRow, tokenizer: Any, console: Console) -> None:
    """Print one row with supervised tokens in green; repeated tokens are counted instead of repeated."""
    report = row_report(row, tokenizer)
    console.rule(f"{report['source']}: {report['tokens']} tokens, {report['supervised_tokens']} supervised")
    for start, end, supervised in runs(row):
        text = decode_folded(row.input_ids.tolist(), start, end, tokenizer)
        console.print(Text(text, style="bold green" if supervised else "dim"), end="")
    console.print()
    for name, shape in report["tensors"].items():
        console.print(f"  {name}: {tuple(shape)}", style="dim", markup=False, highlight=False)


def decode_folded(ids: Sequence[int], start: int, end: int, tokenizer: Any) -> str:
    """Decode `ids[start:end]`, writing a token that repeats four times or more once with its count."""
    pieces: list[str] = []
    pending = position = start
    while position < end:
        last = position
        while last < end and ids[last] == ids[position]:
            last += 1
        if last - position >= 4:
            # Phi-3-Vision's placeholders are negative ids, which no tokenizer names.
            name = decode_between(ids, position, position + 1, tokenizer) or f"[{ids[position]}]"
            pieces += (decode_between(ids, pending, position, tokenizer), f"{name}×{last - position}")
            pending = last
        position = last
    return "".join([*pieces, decode_between(ids, pending, end, tokenizer)])
