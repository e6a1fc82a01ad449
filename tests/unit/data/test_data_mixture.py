"""Several data sets in one run: weights, columns of each, validation, epochs, and which one failed."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.datasets import write_image, write_jsonl
from vlm_lora.batching.ordering.batch_order import BatchOrder
from vlm_lora.batching.ordering.rows import FillableRows
from vlm_lora.config.run_config import DataConfig
from vlm_lora.config.sources import parse
from vlm_lora.data.conversation import Conversation, RowSource, Text, Turn
from vlm_lora.data.dataset import Splits, load_splits
from vlm_lora.data.mixture import Mixture, split_names
from vlm_lora.errors import ConfigError, DataError


class Counted:
    """Rows that tell their data set, row, epoch and repetition."""

    def __init__(self, name: str, length: int, *, varies: bool = False) -> None:
        self.name = name
        self.varies = varies
        self._length = length

    def __len__(self) -> int:
        return self._length

    def at(self, index: int, *, epoch: int = 0, repeat: int = 0) -> Conversation:
        said = Turn(role="assistant", parts=(Text(text=f"{self.name} {index} {epoch} {repeat}"),))
        return Conversation(turns=(said,), source=self.source(index))

    def source(self, index: int) -> RowSource:
        return RowSource(file=self.name, row=index)


def told(data: Mixture, epoch: int = 0) -> list[tuple[str, int, int]]:
    """Return data set, row and repetition of each row of an epoch."""
    found = []
    for n in range(len(data)):
        name, row, said_epoch, repeat = data.at(n, epoch=epoch).turns[-1].text.split()
        assert int(said_epoch) == epoch
        found.append((name, int(row), int(repeat)))
    return found


def mix(*weights: float, rows: Sequence[int] = (4, 3), seed: int = 1) -> Mixture:
    return Mixture([Counted("ab"[n], rows[n]) for n in range(len(weights))], weights, seed=seed)


def test_whole_weights_repeat_every_row() -> None:
    found = told(mix(2, 1))
    twice = [("a", row, repeat) for row in range(4) for repeat in range(2)]
    assert sorted(found) == [*twice, ("b", 0, 0), ("b", 1, 0), ("b", 2, 0)]
    assert not mix(2, 1).varies
    assert told(mix(2, 1), epoch=3) == found


def test_fractions_take_other_rows_each_epoch_and_the_same_for_one_seed() -> None:
    data = mix(0.25, 1.5, rows=(40, 20))
    assert data.varies
    assert len(data) == 10 + 20 + 10
    epochs = [told(data, epoch) for epoch in range(4)]
    for found in epochs:
        rows = Counter((name, row) for name, row, _ in found)
        assert sum(count for (name, _), count in rows.items() if name == "a") == 10
        assert max(count for (name, _), count in rows.items() if name == "a") == 1
        assert all(rows["b", n] in (1, 2) for n in range(20))
    assert len({tuple(found) for found in epochs}) == 4
    again = mix(0.25, 1.5, rows=(40, 20))
    assert [told(again, epoch) for epoch in (3, 1)] == [epochs[3], epochs[1]], "whatever was asked for before"
    assert told(mix(0.25, 1.5, rows=(40, 20), seed=2)) != epochs[0]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.5, 1, 1.25, 2, 3.75])), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_every_row_comes_as_often_as_its_weight_says(members: list[tuple[int, float]], epoch: int) -> None:
    kept = [(rows, weight) for rows, weight in members if rows * weight >= 1]
    if not kept:
        return
    data = Mixture([Counted(str(n), rows) for n, (rows, _) in enumerate(kept)], [w for _, w in kept], seed=3)
    counts = Counter((name, row) for name, row, _ in told(data, epoch))
    for n, (rows, weight) in enumerate(kept):
        found = [counts[str(n), row] for row in range(rows)]
        assert sum(found) == int(weight) * rows + round(weight % 1 * rows)
        assert all(int(weight) <= count <= int(weight) + 1 for count in found)


def test_a_weight_that_takes_no_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"--dataset_weights 0\.01: takes none of the 4 rows of a"):
        mix(0.01, 1)


def test_the_epoch_reaches_the_mixture_through_order_and_pickling() -> None:
    data = mix(0.5, 1, rows=(20, 5))
    rows = pickle.loads(pickle.dumps(FillableRows(data)))
    assert rows.varies
    order = BatchOrder([range(len(data))], batch_size=3, processes=1, seed=0, carries_epoch=True)
    order.set_epoch(2)
    found = Counter(rows[index].turns[-1].text for index in order if index % (2 * len(data)) < len(data))
    assert found == Counter(f"{name} {row} 2 {repeat}" for name, row, repeat in told(data, 2))


def load(*names: Path, train: bool = True, validation: bool = False, **config: Any) -> Splits:
    joined = " + ".join(map(str, names))
    return load_splits(DataConfig(dataset_name=joined, **config), need_train=train, need_validation=validation)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    """One set of questions about images, one of chats without any."""
    first, second = tmp_path / "first", tmp_path / "second"
    write_image(first / "a.png", seed=1)
    write_jsonl(first / "train.jsonl", [{"image": "a.png", "query": f"q{n}", "label": f"first {n}"} for n in range(4)])
    second.mkdir()
    chats = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"second {n}"}] for n in range(6)]
    write_jsonl(second / "train.jsonl", [{"messages": chat} for chat in chats[:4]])
    write_jsonl(second / "val.jsonl", [{"messages": chat} for chat in chats[4:]])
    return first, second


def answers(data: Any) -> list[str]:
    return [data[n].turns[-1].text for n in range(len(data))]


def test_each_data_set_has_its_own_columns_and_validation(sets: tuple[Path, Path]) -> None:
    splits = load(*sets, validation=True, dataset_weights=(2.0, 1.0), validation_fraction=0.25)
    assert Counter(answers(splits.train)).most_common()[0][1] == 2
    counts = Counter(answers(splits.train))
    assert {answer: counts[answer] for answer in counts if "second" in answer} == {f"second {n}": 1 for n in range(4)}
    assert sum("first" in answer for answer in counts) == 3
    measured = answers(splits.validation)
    assert measured[1:] == ["second 4", "second 5"]
    assert {measured[0]} | {answer for answer in counts if "first" in answer} == {f"first {n}" for n in range(4)}
    assert splits.train is not None
    assert [len(splits.train[n].images) for n in (0, len(splits.train) - 1)] == [1, 0]
    assert str(splits.train.source(0)).startswith(f"{sets[0]}/train.jsonl row {splits.train[0].source.row} (line ")
    for said in (f"data set {sets[0]}: train is seen 2 times an epoch", "column 'query'", "column 'messages'"):
        assert said in splits.explanation


def test_separate_validation_data_counts_once(sets: tuple[Path, Path], tmp_path: Path) -> None:
    named = write_jsonl(tmp_path / "val.jsonl", [{"query": "q", "label": "measured"}])
    splits = load(*sets, validation=True, validation_name=str(named))
    assert answers(splits.validation) == ["measured"]
    assert len(answers(splits.train)) == 8
    alone = load(*sets, train=False, validation=True, validation_name=str(named))
    assert alone.train is None
    assert answers(alone.validation) == ["measured"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"tasks": ("reading",)},
            r"--tasks is for OCR pages, and the data is read as question_answer\..*--page_column",
        ),
        ({"task_seed": 7}, "--task_seed is for OCR pages"),
        ({"box_prompt": "Where?"}, r"--box_prompt is for boxes, .*--boxes_column"),
    ],
)
def test_settings_that_no_data_set_reads_are_refused(sets: tuple[Path, Path], flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(sets[0], **flags)
    with pytest.raises(ConfigError, match="the data is read as question_answer, messages"):
        load(*sets, **flags)
    pages = [{"image": "a.png", "text": {"text": "a"}, "objects": {"bbox": [[1, 2, 3, 4]], "category": ["x"]}}]
    marked = write_jsonl(sets[0] / "marked.jsonl", pages * 2)
    column: dict[str, Any] = {"boxes_column": "objects"} if "box_prompt" in flags else {"page_column": "text"}
    assert load(marked, **flags, **column).train is not None


def test_messages_name_the_data_set_that_failed(sets: tuple[Path, Path], tmp_path: Path) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"x": 1}])
    with pytest.raises(DataError, match=rf"^--dataset_name {bad}: .*no column could be taken as the prompt"):
        load(sets[0], bad)
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        load(sets[0], tmp_path / "none.jsonl")
    odd = write_jsonl(tmp_path / "odd.jsonl", [{"query": "q", "label": "a"}, {"query": "q", "label": None}])
    data = load(sets[0], odd, validation_fraction=0.0).train
    assert data is not None
    with pytest.raises(DataError, match=rf"^{odd} row 1 \(line 2\): "):
        data[5]


def test_names_and_weights_from_flags_and_files(sets: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(str, sets)
    flags = parse(["--dataset_name", first, second, "--dataset_weights", "2", "0.5"], environ={}).data
    file = tmp_path / "run.yaml"
    file.write_text(f"dataset_name: [{first}, {second}]\ndataset_weights: [2, 0.5]\n", encoding="utf-8")
    assert parse(["--config", str(file)], environ={}).data == flags
    assert split_names(flags.dataset_name) == (first, second)
    assert flags.dataset_weights == (2.0, 0.5)
    odd = tmp_path / "a + b"
    odd.mkdir()
    assert split_names(str(odd)) == (str(odd),)
    with pytest.raises(ConfigError, match="--dataset_weights 1: 1 weights, and --dataset_name names 2 data sets"):
        load(*sets, dataset_weights=(1.0,))
    with pytest.raises(ConfigError, match="--dataset_weights 0"):
        DataConfig(dataset_weights=(0.0,))
