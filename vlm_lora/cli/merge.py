"""`vlm-lora merge ADAPTER --output_dir DIR`: adapter and base as one whole model, proven."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlm_lora.cli.runs import keep_bars_out
from vlm_lora.cli.setup import configure, verb_parser
from vlm_lora.config.early import MODEL, OUTPUT
from vlm_lora.progress import live_line

if TYPE_CHECKING:
    from vlm_lora.deploy.merge_report import MergeReport
    from vlm_lora.deploy.readings import Deviation


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("merge")
    parser.add_argument(
        "--rows", type=int, default=4, metavar="N", help="rows that adapter and merged model both answer; 0: none (4)"
    )
    parser.add_argument(
        "--max_shard_size",
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="of one file of weights (5GB)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def merge(rest: Sequence[str]) -> None:
    """Merge, and say what was done and how it was proven."""
    own, others = flags().parse_known_args(with_model_flag(rest))
    run = configure(others, {}, log_level="warning", verb="merge", needed=(MODEL, OUTPUT))
    if live_line() is None:
        keep_bars_out()
    from vlm_lora.deploy.merge import merge as merged
    from vlm_lora.deploy.merge_report import MergeRequest, as_json

    report = merged(run, MergeRequest(rows=own.rows, max_shard_size=own.max_shard_size))
    print(json.dumps(as_json(report), indent=2) if own.json else in_words(report))


def with_model_flag(rest: Sequence[str]) -> list[str]:
    """Return the words with a bare first one, a folder, behind the model's flag."""
    if rest and not rest[0].startswith("-"):
        return [f"--{MODEL}", *rest]
    return list(rest)


def in_words(report: MergeReport) -> str:
    """Return what was merged and how it was proven, in lines for a terminal."""
    folded, found = report.folded, report.deviation
    whole = f" and {len(folded.whole)} modules that it brings whole" if folded.whole else ""
    lines = [
        f"Merged: {len(folded.layers)} layers of {report.adapter}{whole} into {report.base}, in {report.dtype}.",
        *(["Trained on the base in 4 bits; merged onto the whole base."] if report.quantized else []),
        f"Weights: {folded.recomputed} of {len(folded.layers)} changed layers computed twice; all {report.tensors} "
        "tensors read back from the folder bit for bit.",
        f"Answers: {found.equal_answers} of {found.rows} equal; logits at most {found.largest:.2g} apart (the largest "
        f"is {found.size:.3g}{_rounding(found)})."
        if found
        else "Answers: no rows were asked (--rows 0).",
        f"Written to {report.folder}: {report.files} {'file' if report.files == 1 else 'files'} of weights, "
        f"{report.size:,} bytes.",
        f"Next: vlm-lora ask --model_name_or_path {shlex.quote(report.folder)} --image FILE --prompt QUESTION",
    ]
    return "\n".join(lines)


def _rounding(found: Deviation) -> str:
    """Return what rounding alone does to the logits, where that was measured."""
    return "" if found.rounding is None else f"; one rounding error in each weight moves them by {found.rounding:.2g}"
