"""`vlm-lora quantize FOLDER --scheme awq --output_dir DIR`: a run or a whole model in fewer bits, proven."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lora.cli.merge import with_model_flag
from vlm_lora.cli.runs import keep_bars_out
from vlm_lora.cli.setup import configure, set_up_logging, verb_parser
from vlm_lora.config.early import MODEL, OUTPUT
from vlm_lora.errors import ConfigError
from vlm_lora.progress import live_line

if TYPE_CHECKING:
    from vlm_lora.deploy.quantization.request import QuantizeReport


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("quantize")
    parser.add_argument("--scheme", metavar="SCHEME", help="awq (4 bits), or fp8-dynamic (8-bit floats)")
    parser.add_argument("--rows", type=int, default=128, metavar="N", help="rows that AWQ finds its scales from (128)")
    parser.add_argument(
        "--max_shard_size", "--max-shard-size", default="5GB", metavar="SIZE", help="of one file of weights (5GB)"
    )
    parser.add_argument(
        "--environment", type=Path, metavar="DIR", help="where llm-compressor is installed (below ~/.cache/vlm-lora)"
    )
    parser.add_argument(
        "--make_environment",
        "--make-environment",
        action="store_true",
        help="make that environment, with pinned versions, and end",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def quantize(rest: Sequence[str]) -> None:
    """Quantize, or make the environment for it, and say what was done."""
    own, others = flags().parse_known_args(with_model_flag(rest))
    if own.make_environment:
        if others:
            raise ConfigError(f"--make_environment makes an environment and quantizes nothing: leave {others[0]} out.")
        set_up_logging("warning")
        from vlm_lora.deploy.quantization.environment import make

        print(f"Made: {make(own.environment)}")
        return
    if own.scheme is None:
        raise ConfigError("--scheme is missing: awq (4 bits), or fp8-dynamic (8-bit floats).")
    from vlm_lora.deploy.quantization.request import QuantizeRequest, as_json
    from vlm_lora.deploy.quantization.schemes import scheme_of

    scheme_of(own.scheme)
    request = QuantizeRequest(
        scheme=own.scheme, rows=own.rows, environment=own.environment, max_shard_size=own.max_shard_size
    )
    run = configure(others, {}, log_level="warning", verb="quantize", needed=(MODEL, OUTPUT))
    if live_line() is None:
        keep_bars_out()
    from vlm_lora.deploy.quantization.quantize import quantize as quantized

    report = quantized(run, request)
    print(json.dumps(as_json(report), indent=2) if own.json else in_words(report))


def in_words(report: QuantizeReport) -> str:
    """Return what was quantized and how it was proven, in lines for a terminal."""
    proof = report.proof
    merged = ", merged into its base" if report.merged else ""
    changed = f", {proof.scaled} divided by AWQ's scales" if proof.scaled else ""
    times = " times AWQ's scales" if proof.scaled else ""
    lines = [
        f"Quantized: {proof.layers} layers of {report.model}{merged}, in {report.meaning}.",
        f"Weights: each within {proof.largest_error:.3f} steps of the model's before{times}; {proof.untouched} other "
        f"tensors bit for bit as before{changed}.",
        *(
            [
                f"AWQ: scales found from {report.calibration_rows} training rows; alone they move a logit by "
                f"{proof.deviation:.2g} of the largest."
            ]
            if proof.deviation is not None
            else []
        ),
        f"Perplexity on {proof.rows} training rows: {math.exp(proof.loss_before):.4f} before, "
        f"{math.exp(proof.loss_after):.4f} after.",
        f"Written to {report.folder}: {report.size_before:,} bytes of weights became {report.size_after:,}.",
        f"Next: vlm-lora servable {shlex.quote(report.folder)}",
    ]
    return "\n".join(lines)
