"""All metrics there are: what each is called, counts and needs. Documentation and choice read this table alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm_lora.metrics.rules import bleu, box_map, boxes, error_rates, json_fields, ocr_page
from vlm_lora.metrics.rules.anls import anls
from vlm_lora.metrics.rules.exact_match import exact_match
from vlm_lora.metrics.rules.relaxed_accuracy import relaxed_accuracy
from vlm_lora.metrics.rules.rouge_l import rouge_l
from vlm_lora.metrics.rules.token_f1 import token_f1
from vlm_lora.metrics.rules.vqa_accuracy import vqa_accuracy
from vlm_lora.metrics.statistics import Combine, Count, mean_of

MODULES = Path(__file__).parent / "modules"

Inputs = Literal["texts", "boxes", "page"]
"""What a metric compares: texts; boxes of rows that have them; both."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric."""

    name: str
    figures: Mapping[str, bool]
    """The figures that it gives, and whether greater is better."""
    rule: str
    """What it says, in a sentence."""
    source: str
    """Whose rule it is."""
    span: str = "0 to 1"
    auto: str = "never"
    """When `--metrics auto` takes it."""
    inputs: Inputs = "texts"
    count: Count | None = None
    combine: Combine | None = None
    """None where the figure is of the whole set alone."""
    whole: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]] | None = None
    """Instead of `count`: the figures of all rows together."""
    packages: tuple[str, ...] = ()
    """What it imports beyond vlm-lora's own dependencies; the extra `metrics` has them."""

    @property
    def path(self) -> Path:
        """Its module for `evaluate.load`."""
        return MODULES / self.name / f"{self.name}.py"


def _mean(
    value: Callable[[str, Sequence[str]], float], *, rule: str, source: str, auto: str, packages: tuple[str, ...] = ()
) -> Metric:
    name = value.__name__
    count, combine = mean_of(name, value)
    return Metric(
        name=name,
        figures={name: True},
        rule=rule,
        source=source,
        auto=auto,
        count=count,
        combine=combine,
        packages=packages,
    )


def _errors(name: str, edits: Callable[[str, str], error_rates.Edits], *, unit: str, auto: str) -> Metric:
    count, combine = error_rates.error_rate(name, edits)
    return Metric(
        name=name,
        figures={name: False},
        rule=f"edits by the length of the expected text in {unit}, all rows together; the best accepted answer",
        source="jiwer",
        span="0 upwards, above 1 where more is wrong than there is",
        auto=auto,
        count=count,
        combine=combine,
        packages=("jiwer",),
    )


_ALL = (
    _mean(
        exact_match,
        rule="the answer equals an accepted one, white space at the ends and thoughts aside",
        source="our own",
        auto="always",
    ),
    _mean(
        relaxed_accuracy,
        rule="numbers may be 5 % off, other answers must be equal but for case",
        source="pix2struct's metrics.py, for ChartQA",
        auto="the columns are ChartQA's (query, label)",
    ),
    _mean(
        anls,
        rule="1 - edit distance / longer length to the nearest accepted answer, 0 where that is not above 0.5; case "
        "aside",
        source="arXiv 1907.00490, for DocVQA",
        auto="the columns are DocVQA's (question, answers, and a document's or question's number)",
    ),
    _mean(
        vqa_accuracy,
        rule="mean over annotators of min(1, other annotators who say the same / 3), after VQAEval's normalization",
        source="VQAEval (GT-Vision-Lab/VQA)",
        auto="rows have ten accepted answers or about as many",
    ),
    _errors("cer", error_rates.character_edits, unit="characters", auto="rows are OCR pages whose text is asked for"),
    _errors("wer", error_rates.word_edits, unit="words", auto="never"),
    _mean(
        token_f1,
        rule="F1 of the words shared with the best accepted answer, without case, punctuation and articles",
        source="SQuAD 2.0's evaluation script",
        auto="nothing else is known of the data, or rows have several accepted answers",
    ),
    Metric(
        name="bleu",
        figures={"bleu": True},
        rule="runs of 1 to 4 words shared with the accepted answers, all rows together; as a share, not as 0 to 100",
        source="sacrebleu, its defaults",
        count=bleu.count,
        combine=bleu.combine,
        packages=("sacrebleu",),
    ),
    _mean(
        rouge_l,
        rule="F1 of the longest common subsequence of words with the best accepted answer; letters a to z and digits",
        source="rouge-score, without stemming",
        auto="never",
        packages=("rouge_score",),
    ),
    Metric(
        name="json",
        figures={"json_valid": True, "json_field_f1": True},
        rule="the share of answers that are JSON as the expected ones are; F1 of paths of keys with their values",
        source="RFC 8259; fields as Donut's JSONParseEvaluator",
        auto="the answers are calls of tools, or JSON",
        count=json_fields.count,
        combine=json_fields.combine,
    ),
    Metric(
        name="boxes",
        figures={"box_precision": True, "box_recall": True, "box_f1": True},
        rule="boxes matched one to one to expected ones of the same label and image at an IoU of 0.5 or more",
        source="IoU as COCO; a maximum matching",
        auto="the answers have boxes that vlm-lora writes",
        inputs="boxes",
        count=boxes.count,
        combine=boxes.combine,
    ),
    Metric(
        name="box_map_in_order",
        figures={"box_map_in_order": True},
        rule="COCO's mAP (IoU 0.50 to 0.95) with every score 1, in the order generated: no detector's mAP",
        source="pycocotools",
        inputs="boxes",
        whole=box_map.figures,
        packages=("pycocotools",),
    ),
    Metric(
        name="ocr_page",
        figures={
            "ocr_cer": False,
            "ocr_wer": False,
            "ocr_anls": True,
            "ocr_exact_match": True,
            **{f"ocr_box_{name}_{iou}": True for iou in ocr_page.IOUS for name in ("precision", "recall", "f1")},
        },
        rule="the page's text, taken out of JSON, white space as single blanks: CER, WER, ANLS, exact match; its boxes "
        "at IoU 0.50 and 0.75",
        source="jiwer; the metrics above",
        span="0 to 1; error rates 0 upwards",
        auto="rows are OCR pages whose text is asked for",
        inputs="page",
        count=ocr_page.count,
        combine=ocr_page.combine,
        packages=("jiwer",),
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""By the name that `--metrics` takes."""

BY_FIGURE: Mapping[str, str] = {figure: metric.name for metric in _ALL for figure in metric.figures}
"""The metric that gives a figure: `--metrics` takes figures too."""
