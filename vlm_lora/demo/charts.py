"""Writes the demo's data set: bar charts of real numbers, questions about them, exact answers.

``train.jsonl`` holds chats, several questions about one chart in a row, so that each image is worth
more than one answer; ``validation.jsonl`` holds one ``question`` and ``answer`` a chart. Images are
small PNG files named relative to the folder. Which rows of the tables may appear in which split is
decided in :mod:`vlm_lora.demo.chart_tables`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from vlm_lora.demo.chart_drawing import Bar, draw_chart, fits_sideways, fits_upright
from vlm_lora.demo.chart_tables import Group, all_groups
from vlm_lora.demo.scenes import Exchange

_QUESTIONS = ("value",) * 5 + ("highest", "lowest") * 2 + ("highest value",)
_ENOUGH_GROUPS = 30
QUESTIONS_PER_CHART = 4
"""Of a chart that is trained on; two bars allow five different ones."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One row of the data set, with its image (96 x 96 pixels, RGB)."""

    image: Image.Image
    exchanges: tuple[Exchange, ...]
    """Different questions with their answers: several to train on, one where held out."""
    table: str
    bars: tuple[Bar, ...]

    @property
    def question(self) -> str:
        """The first question."""
        return self.exchanges[0].question

    @property
    def answer(self) -> str:
        """The answer to the first question."""
        return self.exchanges[0].answer


@dataclass(frozen=True, kw_only=True)
class ChartSummary:
    """What was written."""

    folder: Path
    train: int
    validation: int
    tables: tuple[str, ...]
    guess_accuracy: float
    """Share of the validation answers that the commonest answer to the same kind of question in
    the training split gets right, without looking at an image."""


def write_chart_dataset(folder: Path, *, train: int, validation: int, seed: int) -> ChartSummary:
    """Write both splits; the same seed writes the same rows and images."""
    if train < 1 or validation < 1:
        raise ValueError(f"both splits need charts, not train={train}, validation={validation}")
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, list[Chart]] = {}
    for split, count in (("train", train), ("validation", validation)):
        charts = make_charts(count, held_out=split == "validation", seed=seed)
        _write_split(folder, split, charts)
        written[split] = charts
    return ChartSummary(
        folder=folder,
        train=train,
        validation=validation,
        tables=tuple(sorted({chart.table for charts in written.values() for chart in charts})),
        guess_accuracy=_guess_accuracy(written["train"], written["validation"]),
    )


def make_charts(count: int, *, held_out: bool, seed: int) -> list[Chart]:
    """Random charts of one split."""
    rng = random.Random(f"charts-{seed}-{held_out}")
    by_table: dict[str, list[Group]] = {}
    for group in all_groups():
        if group.held_out == held_out:
            by_table.setdefault(group.table, []).append(group)
    tables = sorted(by_table)
    # A small table is drawn less often, or its few held-out records would repeat for ever.
    weights = [min(len(by_table[table]), _ENOUGH_GROUPS) for table in tables]
    charts: list[Chart] = []
    while len(charts) < count:
        table = rng.choices(tables, weights)[0]
        chart = _make_chart(rng.choice(by_table[table]), rng, questions=1 if held_out else QUESTIONS_PER_CHART)
        if chart is not None and not (held_out and _drawable_in_training(chart)):
            charts.append(chart)
    return charts


def _drawable_in_training(chart: Chart) -> bool:
    """Whether a training record happens to hold the same names with the same values."""
    bars = {(bar.name, bar.value) for bar in chart.bars}
    return any(bars <= cells for cells in _training_cells(chart.table))


@cache
def _training_cells(table: str) -> tuple[frozenset[tuple[str, str]], ...]:
    return tuple(
        frozenset(zip(group.names, group.values, strict=True))
        for group in all_groups()
        if group.table == table and not group.held_out
    )


def _make_chart(group: Group, rng: random.Random, *, questions: int) -> Chart | None:
    """A chart of some bars of a group, or None where no drawing of them would be readable."""
    count = min(rng.choice((2, 3)), len(group.names))
    chosen = rng.sample(range(len(group.names)), count)
    bars = tuple(Bar(name=group.names[index], value=group.values[index]) for index in chosen)
    font_size = rng.choice((9.0, 9.5, 10.0))
    distinct = len({bar.number for bar in bars}) == len(bars)
    if not distinct or not (fits_upright(bars, font_size) or fits_sideways(bars, font_size)):
        return None
    exchanges: dict[str, Exchange] = {}
    while len(exchanges) < questions:
        exchange = _exchange(bars, rng)
        exchanges.setdefault(exchange.question, exchange)
    return Chart(
        image=draw_chart(bars, rng, font_size=font_size),
        exchanges=tuple(exchanges.values()),
        table=group.table,
        bars=bars,
    )


def _exchange(bars: tuple[Bar, ...], rng: random.Random) -> Exchange:
    kind = rng.choice(_QUESTIONS)
    if kind == "value":
        bar = rng.choice(bars)
        return Exchange(question=f"What is the value of {bar.name}?", answer=bar.value)
    if kind == "highest value":
        best = max(bars, key=lambda bar: bar.number)
        return Exchange(question="What is the highest value?", answer=best.value)
    best = (max if kind == "highest" else min)(bars, key=lambda bar: bar.number)
    return Exchange(question=f"Which bar is the {kind}?", answer=best.name)


def _write_split(folder: Path, split: str, charts: list[Chart]) -> None:
    (folder / split).mkdir(exist_ok=True)
    lines = []
    for number, chart in enumerate(charts):
        name = f"{split}/{number:05d}.png"
        # Level 1: the images are tiny either way, and writing them is most of the work.
        chart.image.save(folder / name, compress_level=1)
        lines.append(json.dumps({"image": name, **_columns(chart)}) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def _columns(chart: Chart) -> dict[str, object]:
    if len(chart.exchanges) == 1:
        return {"question": chart.question, "answer": chart.answer}
    messages: list[dict[str, str]] = []
    for exchange in chart.exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    return {"messages": messages}


def _kind(question: str) -> str:
    return question if question.startswith("Which bar") else " ".join(question.split()[:4])


def _guess_accuracy(train: list[Chart], validation: list[Chart]) -> float:
    answers: dict[str, Counter[str]] = {}
    for chart in train:
        for exchange in chart.exchanges:
            answers.setdefault(_kind(exchange.question), Counter())[exchange.answer] += 1
    best = {kind: counter.most_common(1)[0][0] for kind, counter in answers.items()}
    right = sum(best.get(_kind(chart.question)) == chart.answer for chart in validation)
    return right / len(validation)
