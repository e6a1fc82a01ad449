"""Rows are told apart by data set and task as their conversations are made."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora.config.sources import from_settings
from vlm_lora.data.dataset import Conversations, load_splits
from vlm_lora.evaluation.asked import question_of
from vlm_lora.evaluation.origins import origin_of, task_of

TASKS = Path(__file__).parents[3] / "examples" / "ocr_tasks.csv"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    rows = []
    for number in range(6):
        write_image(folder / f"{number}.png", seed=number, size=(48, 40))
        lines = [{"text": f"line {n} of {number}", "bbox": [2, 10 * n, 40, 10 * n + 8]} for n in range(1, 3)]
        rows.append({"image": f"{number}.png", "text": {"lines": lines}})
    plain = [{"image": "0.png", "question": "What?", "answer": "that"}]
    return [write_jsonl(folder / "pages.jsonl", rows), write_jsonl(folder / "plain.jsonl", plain)]


def rows_of(*files: Path, **settings: object) -> Conversations:
    given = {"dataset_name": [str(file) for file in files], "validation_fraction": 0.0, "task_file": str(TASKS)}
    run = from_settings({**given, **settings}, environ={})
    train = load_splits(run.data, need_train=True, need_validation=False).train
    assert train is not None
    return train


def test_each_row_of_a_mixture_has_its_data_set_and_pages_their_task(files: list[Path]) -> None:
    rows = rows_of(*files)
    numbers = range(len(rows))
    tasks = [task_of(rows, number) for number in numbers]
    [plain] = [number for number in numbers if tasks[number] is None]
    assert question_of(rows[plain]) == "What?"
    names = [origin_of(rows, number) for number in numbers]
    assert names.count(names[plain]) == 1
    assert len(set(names)) == 2
    assert {origin_of(rows_of(files[0]), 0)} == {None}, "one data set alone needs no name"


def asks(task: str, question: str) -> bool:
    """Say whether a question is one of a task's, whatever stands in its places."""
    with TASKS.open(encoding="utf-8", newline="") as stream:
        forms = [row["question"] for row in csv.DictReader(stream) if row["task"] == task]
    patterns = [".*".join(map(re.escape, re.split(r"{\w+}", form))) for form in forms]
    return any(re.fullmatch(pattern, question, re.DOTALL) for pattern in patterns)


def test_the_task_is_that_of_the_question_which_the_row_asks(files: list[Path]) -> None:
    rows = rows_of(files[0])
    found = [(str(task_of(rows, number)), question_of(rows[number])) for number in range(len(rows))]
    assert [pair for pair in found if not asks(*pair)] == []
    tasks = {task for task, _ in found}
    assert len(tasks) > 1
    assert any(not asks(other, question) for task, question in found for other in tasks - {task}), "the control"
