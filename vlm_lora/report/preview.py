"""Rows as the model will see them: rendered text, ids, and which tokens are supervised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from vlm_lora.batching.encoded import IGNORE_INDEX, EncodedRow


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
            {"start": start, "end": end, "text": tokenizer.decode(ids[start:end])}
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
        text = decode_folded(row.input_ids[start:end].tolist(), tokenizer)
        console.print(Text(text, style="bold green" if supervised else "dim"), end="")
    console.print()
    for name, shape in report["tensors"].items():
        console.print(f"  {name}: {tuple(shape)}", style="dim", markup=False, highlight=False)


def decode_folded(ids: list[int], tokenizer: Any) -> str:
    """Decode ids, writing a token that repeats four times or more once with its count."""
    pieces: list[str] = []
    pending: list[int] = []
    position = 0
    while position < len(ids):
        end = position
        while end < len(ids) and ids[end] == ids[position]:
            end += 1
        if end - position >= 4:
            pieces.append(tokenizer.decode(pending) + f"{tokenizer.decode([ids[position]])}×{end - position}")
            pending = []
        else:
            pending += ids[position:end]
        position = end
    return "".join(pieces) + tokenizer.decode(pending)
