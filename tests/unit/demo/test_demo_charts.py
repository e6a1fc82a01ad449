"""The chart data set: exact answers, disjoint splits, and nothing to gain by guessing."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_lora.demo import tables
from vlm_lora.demo.chart_drawing import Bar, draw_chart
from vlm_lora.demo.chart_tables import all_groups, as_text
from vlm_lora.demo.charts import Chart, make_charts, write_chart_dataset


def answer_from_bars(chart: Chart, question: str | None = None) -> str:
    """The right answer, worked out from the bars alone (the reference for what is written)."""
    by_value = sorted(chart.bars, key=lambda bar: float(bar.value))
    fixed = {
        "Which bar is the highest?": by_value[-1].name,
        "Which bar is the lowest?": by_value[0].name,
        "What is the highest value?": by_value[-1].value,
    }
    question = question or chart.question
    if question in fixed:
        return fixed[question]
    name = question.removeprefix("What is the value of ").removesuffix("?")
    return {bar.name: bar.value for bar in chart.bars}[name]


@pytest.fixture(scope="module")
def held_out_charts() -> list[Chart]:
    return make_charts(300, held_out=True, seed=3)


def test_every_answer_follows_from_the_bars(held_out_charts: list[Chart]) -> None:
    for chart in held_out_charts:
        assert chart.answer == answer_from_bars(chart)
        assert 2 <= len(chart.bars) <= 4
        assert len({bar.number for bar in chart.bars}) == len(chart.bars)


def test_a_training_chart_asks_several_different_questions() -> None:
    for chart in make_charts(50, held_out=False, seed=1):
        questions = [exchange.question for exchange in chart.exchanges]
        assert len(set(questions)) == 4
        assert [exchange.answer for exchange in chart.exchanges] == [answer_from_bars(chart, q) for q in questions]


def test_all_kinds_of_question_are_asked(held_out_charts: list[Chart]) -> None:
    kinds = {" ".join(chart.question.split()[:4]) for chart in held_out_charts}
    assert kinds == {"What is the value", "Which bar is the", "What is the highest"}


def test_no_table_row_is_in_both_splits() -> None:
    groups = all_groups()
    training = {(group.table, group.record) for group in groups if not group.held_out}
    held_out = {(group.table, group.record) for group in groups if group.held_out}
    assert training
    assert held_out
    assert not training & held_out
    assert 0.1 < len(held_out) / (len(training) + len(held_out)) < 0.3


def test_bars_of_a_chart_come_from_one_group_of_its_split(held_out_charts: list[Chart]) -> None:
    allowed: dict[str, list[set[tuple[str, str]]]] = {}
    forbidden: dict[str, list[set[tuple[str, str]]]] = {}
    for group in all_groups():
        cells = set(zip(group.names, group.values, strict=True))
        (allowed if group.held_out else forbidden).setdefault(group.table, []).append(cells)
    for chart in held_out_charts:
        bars = {(bar.name, bar.value) for bar in chart.bars}
        assert any(bars <= cells for cells in allowed[chart.table])
        assert not any(bars <= cells for cells in forbidden[chart.table])


def test_the_image_is_needed(held_out_charts: list[Chart]) -> None:
    """Even a perfect reader of the wrong image would be right at most one time in ten."""
    others = held_out_charts[1:] + held_out_charts[:1]
    right = 0
    for chart, other in zip(held_out_charts, others, strict=True):
        swapped = Chart(
            image=other.image,
            exchanges=chart.exchanges,
            table=other.table,
            bars=other.bars,
        )
        try:
            right += answer_from_bars(swapped) == chart.answer
        except KeyError:
            continue
    assert right / len(held_out_charts) <= 0.10


def test_written_files_hold_the_same_rows(tmp_path: Path) -> None:
    summary = write_chart_dataset(tmp_path, train=40, validation=20, seed=5)
    assert (summary.train, summary.validation) == (40, 20)
    assert summary.guess_accuracy <= 0.15
    expected = make_charts(20, held_out=True, seed=5)
    lines = (tmp_path / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [set(row) for row in rows] == [{"image", "question", "answer"}] * 20
    for row, chart in zip(rows, expected, strict=True):
        assert (row["question"], row["answer"]) == (chart.question, chart.answer)
        with Image.open(tmp_path / row["image"]) as picture:
            assert picture.size == (96, 96)
            assert picture.convert("RGB").tobytes() == chart.image.tobytes()
    assert len(list((tmp_path / "train").glob("*.png"))) == 40


def test_the_seed_decides_the_rows() -> None:
    def rows(seed: int) -> list[tuple[str, str]]:
        return [(c.question, c.answer) for c in make_charts(20, held_out=False, seed=seed)]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation=0"):
        write_chart_dataset(tmp_path, train=1, validation=0, seed=0)


def test_the_value_changes_the_image() -> None:
    import random

    bars = (Bar(name="Ford", value="12"), Bar(name="Opel", value="24"))
    changed = (Bar(name="Ford", value="12"), Bar(name="Opel", value="25"))
    first = draw_chart(bars, random.Random(1), font_size=9.0).tobytes()
    assert first == draw_chart(bars, random.Random(1), font_size=9.0).tobytes()
    assert first != draw_chart(changed, random.Random(1), font_size=9.0).tobytes()


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (39.81, 2, "39.81"),
        (39.8, 2, "39.8"),
        (40.0, 1, "40"),
        (1200, 0, "1200"),
        ("5840.4", 0, "5840"),
    ],
)
def test_numbers_are_printed_as_tables_do(value: object, decimals: int, text: str) -> None:
    assert as_text(value, decimals=decimals) == text


def test_missing_tables_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tables.MissingTablesError, match="pip install vega_datasets"):
        tables.tables_folder()
