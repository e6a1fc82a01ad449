"""Which metrics a run scores its answers by: those that are asked for, or those that suit the data."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlm_lora.config.scoring import AUTO, is_taken, metric_word, names_file, unknown_metric
from vlm_lora.errors import ConfigError, nearest
from vlm_lora.metrics.facts import DataFacts, SetFacts
from vlm_lora.metrics.measures import TableMeasure
from vlm_lora.metrics.own import OwnFunction, OwnModule, own_metric
from vlm_lora.metrics.scorer import EXACT, Scorer
from vlm_lora.metrics.table import BY_FIGURE, METRICS, Metric

EXTRA = 'pip install "vlm-lora[metrics]"'
ANNOTATORS = 8
"""So many accepted answers are those of annotators: VQA data have ten, of which some lose one or two."""
_CHARTQA = ("query", "label")

_DOCVQA = ("question", "answers")
_DOCVQA_NUMBERS = frozenset({"questionid", "docid", "ucsf_document_id"})
"""Small letters; VQAv2, whose other columns are called alike, has question_id."""


def choose(asked: Sequence[str], facts: DataFacts) -> Scorer:
    """Return the scorer for what `--metrics` asks; exact match is always with it.

    Args:
        asked: names of metrics or of their figures, paths of Python files, and `auto`; commas part them too. Nothing
            is `auto`.
        facts: what is known of the data.

    Raises:
        ConfigError: names that are not known, packages that are missing, metrics that the data have nothing for, and
            files that fail: all of them at once.
    """
    parts = ([given] if Path(given).is_file() else given.split(",") for given in asked)
    words = [word.strip() for part in parts for word in part if word.strip()] or [AUTO]
    reasons: dict[str, str] = {EXACT: f"{EXACT}: always"}
    left_out: list[str] = []
    own: dict[str, OwnFunction | OwnModule] = {}
    wrong: list[str] = []
    for word in dict.fromkeys(words):
        if word == AUTO:
            left_out += _add_chosen(reasons, facts)
        elif names_file(word):
            try:
                own[word] = own_metric(word)
            except ConfigError as error:
                wrong.append(str(error))
        elif (metric := _metric_called(word)) is None:
            wrong.append(unknown_metric(word) or f"--metrics {word}: {_of_pages(word)}")
        elif (problem := _missing(metric) or _unfit(metric, facts)) is not None:
            wrong.append(f"--metrics {word}: {problem}")
        else:
            reasons.setdefault(metric.name, f"{metric.name}: asked for by --metrics")
    metrics = [METRICS[name] for name in reasons]
    wrong += _doubled(metrics, own)
    if wrong:
        raise ConfigError("\n".join(wrong))
    lines = [*reasons.values(), *(_why_own(path, measure) for path, measure in own.items())]
    return Scorer([*map(TableMeasure, metrics), *own.values()], lines, left_out)


def _why_own(path: str, metric: OwnFunction | OwnModule) -> str:
    others = f"; left out, as no numbers: {', '.join(metric.left_out)}" if metric.left_out else ""
    return f"{path}: asked for by --metrics ({', '.join(metric.figures)}{others})"


def _metric_called(word: str) -> Metric | None:
    name = metric_word(word)
    return METRICS.get(BY_FIGURE.get(name, name))


def _of_pages(word: str) -> str:
    """Say that OCR pages have no such figure."""
    figures = METRICS["ocr_page"].figures
    return f"OCR pages have no such figure.{nearest(metric_word(word), figures)} They have {', '.join(figures)}."


def _missing(metric: Metric) -> str | None:
    """Say which packages a metric needs that are not installed; None where all are."""
    missing = [name for name in metric.packages if importlib.util.find_spec(name) is None]
    return f"it needs {' and '.join(missing).replace('_', '-')}, not installed here. Type {EXTRA}" if missing else None


def _unfit(metric: Metric, facts: DataFacts) -> str | None:
    """Say why a metric could give nothing but nothing for the data; None where it can."""
    if not facts.sets:
        return None
    if metric.inputs == "boxes" and not any(one.boxes for one in facts.sets):
        return (
            "no answer of the data has boxes that vlm-lora reads (a column of boxes, pages with tasks for boxes, marks "
            "in texts). Leave it out."
        )
    known = [count for one in facts.sets for count in one.accepted]
    if metric.name == "vqa_accuracy" and known and max(known) == 1:
        return "it compares annotators, and each row of the data has one accepted answer. Type anls or token_f1"
    return None


def _doubled(metrics: Sequence[Metric], own: dict[str, OwnFunction | OwnModule]) -> Iterator[str]:
    taken = {figure: metric.name for metric in metrics for figure in metric.figures}
    for path, measure in own.items():
        for figure in measure.figures:
            if is_taken(figure):
                yield (
                    f"--metrics {path}: its figure '{figure}' has the name of something else in results "
                    f"(eval_{figure}). Name it otherwise: a figure is called as the file, or as score's dictionary "
                    "says."
                )
            elif figure in taken:
                yield (
                    f"--metrics {path}: its figure '{figure}' is called as one of {taken[figure]}. Name it otherwise: "
                    "a figure is called as the file, or as score's dictionary says."
                )
            taken.setdefault(figure, path)


def _add_chosen(reasons: dict[str, str], facts: DataFacts) -> list[str]:
    """Add the metrics that suit the data, and return lines about those that cannot be had here."""
    left_out: dict[str, str] = {}
    for one in facts.sets:
        for name, why in _suiting(one):
            said = f"{name}: {why}" if len(facts.sets) == 1 else f"{name}: {why} ({one.name})"
            problem = _missing(METRICS[name])
            if problem is None:
                reasons.setdefault(name, said)
            else:
                left_out.setdefault(name, f"left out: {said}; {problem}")
    if len(reasons) == 1 and not left_out:
        reasons["token_f1"] = "token_f1: nothing is known of the data that asks for another"
    return list(left_out.values())


def _suiting(data: SetFacts) -> Iterator[tuple[str, str]]:
    """Yield the metrics that suit one data set, each with the reason."""
    several = max(data.accepted, default=1)
    if data.page_text:
        yield "ocr_page", "rows are OCR pages whose text is asked for"
        yield "cer", "rows are OCR pages whose text is asked for"
    elif data.boxes:
        yield "boxes", "the answers have boxes"
    elif data.calls or data.json:
        yield "json", "the answers are calls of tools" if data.calls else "the answers are JSON"
    elif (data.prompt, data.response) == _CHARTQA:
        yield "relaxed_accuracy", "the columns are ChartQA's (query, label)"
    elif (data.prompt, data.response) == _DOCVQA and data.columns & _DOCVQA_NUMBERS:
        number = ", ".join(sorted(data.columns & _DOCVQA_NUMBERS))
        yield "anls", f"the columns are DocVQA's (question, answers, {number})"
    elif several >= ANNOTATORS:
        yield "vqa_accuracy", f"rows have the answers of up to {several} annotators"
    elif several > 1:
        yield "token_f1", f"rows have up to {several} accepted answers; the best one counts"
    else:
        yield "token_f1", "answers are texts, and nothing says of which kind"
