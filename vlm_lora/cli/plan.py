"""`vlm-lora plan`: how much memory a training needs on each device, before any weight is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from vlm_lora.cli.setup import configure, verb_parser
from vlm_lora.config.early import MODEL
from vlm_lora.config.values import is_true
from vlm_lora.errors import ConfigError


def flags() -> argparse.ArgumentParser:
    """Return the parser of the flags that only this verb has."""
    parser = verb_parser("plan")
    parser.add_argument(
        "--device", nargs="+", default=["here"], metavar="NAME", help="here, all, or names such as H100-80 (here)"
    )
    for flag, default, meaning in (
        ("world_size", 1, "processes, one per device"),
        ("rows", 64, "rows of the data to measure"),
        ("images", 1, "without data: images of a row"),
        ("answer_tokens", 64, "without data: supervised tokens of a row"),
    ):
        parser.add_argument(f"--{flag}", type=int, default=default, metavar="N", help=f"{meaning} ({default})")
    parser.add_argument(
        "--assumed_size", default="1024x1024", metavar="WxH", help="without data: images in pixels (1024x1024)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; sizes are bytes")
    return parser


def plan(rest: Sequence[str]) -> None:
    """Run the verb.

    Raises:
        ConfigError: a size of images where a number is meant, or what cannot be planned.
    """
    own, others = flags().parse_known_args(rest)
    for flag, value in zip(others, [*others[1:], ""], strict=True):
        if flag.replace("-", "_") == "__image_size" and "x" in value:
            raise ConfigError(
                f"--image_size {value}: it says how large the model is shown images, by one number. For the size of "
                f"images that a plan without data assumes, type --assumed_size {value}."
            )
    run = configure(others, {}, log_level="error", verb="plan", needed=(MODEL,))
    from rich.console import Console

    from vlm_lora import pipeline
    from vlm_lora.memory.request import PlanRequest
    from vlm_lora.report.memory import as_json, print_plan, progress

    request = PlanRequest(
        devices=",".join(own.device),
        world_size=own.world_size,
        rows=own.rows,
        images=own.images,
        assumed_size=own.assumed_size,
        answer_tokens=own.answer_tokens,
    )
    with progress(disabled=is_true(run.raw.get("disable_tqdm"))) as announce:
        report = pipeline.plan(run, request, announce)
    if own.json:
        print(json.dumps(as_json(report), indent=2))
        return
    print_plan(report, Console(highlight=False, soft_wrap=True))
