"""From a configuration to the conversations that are trained on and measured on."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest

from support.datasets import (
    draw_chart,
    encode_png,
    save_chartqa_to_disk,
    write_chartqa_folder,
    write_image,
    write_jsonl,
)
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.data.dataset import ConversationDataset, Conversations, Splits, load_splits
from vlm_lora.data.images.loader import ImageLimits, load_image
from vlm_lora.errors import DataError


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"query": f"q{n}", "label": f"a{n}"} for n in range(start, start + count)]


def load(*, train: bool = True, validation: bool = True, **config: Any) -> Splits:
    return load_splits(DataConfig(**config), need_train=train, need_validation=validation)


def answers(data: Conversations | None) -> list[str]:
    assert data is not None
    return [data[i].turns[-1].text for i in range(len(data))]


@pytest.mark.parametrize("write", [write_chartqa_folder, save_chartqa_to_disk])
def test_chartqa_from_folder_to_conversation(tmp_path: Path, write: Any) -> None:
    folder = write(tmp_path / "charts", train=3, val=2, test=2, seed=1)
    splits = load(dataset_name=str(folder))
    assert splits.train is not None
    picture, query, answer = draw_chart(100_001)
    place = "data/train-00000-of-00001.parquet" if write is write_chartqa_folder else "train"
    assert splits.train[1] == Conversation(
        turns=(
            Turn(role="user", parts=(ImageRef(source=encode_png(picture)), Text(text=query))),
            Turn(role="assistant", parts=(Text(text=answer),)),
        ),
        source=RowSource(file=str(folder / place), row=1),
        accepted_answers=(answer,),
    )
    assert load_image(splits.train[1].images[0].source, limits=ImageLimits()).tobytes() == picture.tobytes()
    assert splits.validation is not None
    assert len(splits.validation) == 2
    assert splits.validation[0].images == (ImageRef(source=encode_png(draw_chart(140_000)[0])),)
    for said in ("validation: the split 'val'", "test: not used", "prompt: column 'query', by its name"):
        assert said in splits.explanation


@pytest.mark.parametrize("name", ["val", "valid", "dev", "validation", "eval", "VAL"])
def test_splits_with_a_name_for_validation_are_used(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(5))
    write_jsonl(tmp_path / f"{name}.jsonl", rows(2, 90))
    splits = load(dataset_name=str(tmp_path))
    assert answers(splits.train) == ["a0", "a1", "a2", "a3", "a4"]
    assert answers(splits.validation) == ["a90", "a91"]


def test_without_a_validation_split_a_seeded_share_is_held_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(40))
    first = load(dataset_name=str(path), validation_fraction=0.1, split_seed=3)
    again = load(dataset_name=str(path), validation_fraction=0.1, split_seed=3)
    other = load(dataset_name=str(path), validation_fraction=0.1, split_seed=4)
    held = answers(first.validation)
    assert len(held) == 4
    assert held == answers(again.validation)
    assert held != answers(other.validation)
    assert sorted(held + answers(first.train)) == sorted(f"a{n}" for n in range(40))
    assert "4 of its 40 rows (0.1, seed 3), because the data names no validation split" in first.explanation
    # Evaluating later, without training, measures the same rows.
    assert answers(load(train=False, dataset_name=str(path), validation_fraction=0.1, split_seed=3).validation) == held


def test_the_test_split_is_never_trained_on_nor_taken_for_validation(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", rows(20))
    write_jsonl(tmp_path / "test.jsonl", rows(5, 90))
    splits = load(dataset_name=str(tmp_path))
    seen = answers(splits.train) + answers(splits.validation)
    assert sorted(seen) == sorted(f"a{n}" for n in range(20))
    assert "test: not used" in splits.explanation
    alone = write_jsonl(tmp_path / "alone" / "test.jsonl", rows(5, 90))
    with pytest.raises(DataError, match=r"no split to train on; it has 'test'"):
        load(dataset_name=str(alone))
    assert answers(load(train=False, dataset_name=str(alone)).validation) == [f"a{n}" for n in range(90, 95)]


def test_evaluation_alone_takes_the_validation_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "validation.jsonl", rows(3))
    write_jsonl(tmp_path / "test.jsonl", rows(3, 90))
    splits = load(train=False, dataset_name=str(tmp_path))
    assert splits.train is None
    assert answers(splits.validation) == ["a0", "a1", "a2"]


def test_separate_validation_data_goes_first_and_is_used_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "train.jsonl", rows(5))
    write_jsonl(tmp_path / "d" / "val.jsonl", rows(2, 50))
    extra = write_jsonl(tmp_path / "mine.jsonl", rows(3, 90))
    splits = load(dataset_name=str(tmp_path / "d"), validation_name=str(extra))
    assert len(answers(splits.train)) == 5
    assert answers(splits.validation) == ["a90", "a91", "a92"]
    assert answers(load(train=False, validation_name=str(extra)).validation) == ["a90", "a91", "a92"]
    from_folder = load(train=False, validation_name=str(tmp_path / "d"), dataset_name="never/opened")
    assert answers(from_folder.validation) == ["a50", "a51"]
    write_jsonl(tmp_path / "e" / "train.jsonl", rows(5))
    write_jsonl(tmp_path / "e" / "test.jsonl", rows(5))
    with pytest.raises(DataError, match=r"--validation_name .*'test', 'train' and none is a validation split"):
        load(train=False, validation_name=str(tmp_path / "e"))


def test_training_alone_holds_out_what_a_later_evaluation_measures(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(40))
    trained = load(validation=False, dataset_name=str(path))
    measured = load(train=False, dataset_name=str(path))
    assert trained.validation is None
    assert sorted(answers(trained.train) + answers(measured.validation)) == sorted(f"a{i}" for i in range(40))


def test_training_alone_uses_all_rows_when_told_to_hold_out_none(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(4))
    assert len(answers(load(validation=False, dataset_name=str(path), validation_fraction=0).train)) == 4
    for train in (True, False):
        with pytest.raises(DataError, match="--validation_fraction 0"):
            load(train=train, dataset_name=str(path), validation_fraction=0)


def test_sample_limits_take_the_first_rows_and_leave_the_hold_out_as_it_is(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(40))
    whole = load(dataset_name=str(path), validation_fraction=0.2)
    few = load(dataset_name=str(path), validation_fraction=0.2, max_train_samples=3, max_eval_samples=2)
    assert answers(few.train) == answers(whole.train)[:3]
    assert answers(few.validation) == answers(whole.validation)[:2]
    assert "3 rows (the first of 32)" in few.explanation


def test_rows_that_are_left_out_are_gone_and_the_others_keep_their_place(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(5))
    data = load(validation=False, dataset_name=str(path), validation_fraction=0).train
    assert isinstance(data, ConversationDataset)
    fewer = data.without([1, 3]).without([0])
    assert answers(fewer) == ["a2", "a4"]
    assert [fewer.source(index).row for index in range(len(fewer))] == [2, 4]
    assert answers(data) == ["a0", "a1", "a2", "a3", "a4"]


def test_no_data_and_empty_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Type --dataset_name"):
        load()
    with pytest.raises(DataError, match="Type --dataset_name"):
        load(validation_name=str(write_jsonl(tmp_path / "v.jsonl", rows(1))))
    empty = write_jsonl(tmp_path / "rows.jsonl", [])
    with pytest.raises(DataError, match="0 row"):
        load(dataset_name=str(empty))
    with pytest.raises(DataError, match=r"'train'.*rows\.jsonl\) has no rows"):
        load(validation=False, dataset_name=str(empty))


def write_pictured(folder: Path, name: str, row: dict[str, Any]) -> Path:
    write_image(folder / "pictures" / "a.png", seed=1)
    return write_jsonl(folder / name, [{"image": name, **row} for name in ("pictures/a.png",)])


def test_image_paths_start_from_the_data_file_or_the_image_root(tmp_path: Path) -> None:
    row = {"query": "q", "label": "a"}
    path = write_pictured(tmp_path / "d", "rows.jsonl", row)
    picture = ImageRef(source=(tmp_path / "d" / "pictures" / "a.png").resolve())
    beside = load(validation=False, dataset_name=str(path)).train
    assert beside is not None
    assert beside[0].images == (picture,)
    moved = write_jsonl(tmp_path / "elsewhere" / "rows.jsonl", [{"image": "pictures/a.png", **row}])
    without = load(validation=False, dataset_name=str(moved)).train
    assert without is not None
    with pytest.raises(DataError, match=rf"^{moved} row 0 \(line 1\): .*--image_root FOLDER"):
        without[0]
    rooted = load(validation=False, dataset_name=str(moved), image_root=str(tmp_path / "d")).train
    assert rooted is not None
    assert rooted[0].images == (picture,)
    with pytest.raises(DataError, match=r"--image_root .*no such folder"):
        load(validation=False, dataset_name=str(moved), image_root=str(tmp_path / "gone"))


def test_errors_in_a_row_name_its_file_and_its_row_in_that_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-1.jsonl", rows(2))
    second = write_jsonl(tmp_path / "train-2.jsonl", [*rows(1), {"query": "q", "label": None}])
    data = load(validation=False, dataset_name=str(tmp_path), validation_fraction=0).train
    assert data is not None
    assert str(data.source(3)) == f"{second} row 1 (line 2)"
    with pytest.raises(DataError, match=rf"^{second} row 1 \(line 2\): .*'label'"):
        data[3]
    assert data[2].turns[-1].text == "a0"
    with pytest.raises(IndexError):
        data[4]


def test_explicit_columns_and_the_system_prompt_reach_the_rows(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"q1": "q", "q2": "r", "label": "a"}])
    data = load(
        validation=False, dataset_name=str(path), prompt_column="q2", system_prompt="Be brief.", ignore_columns=("q1",)
    ).train
    assert data is not None
    assert [turn.text for turn in data[0].turns] == ["Be brief.", "r", "a"]


def test_train_and_validation_may_have_different_columns(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "rows.jsonl", rows(2))
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]
    extra = write_jsonl(tmp_path / "chats.jsonl", [{"messages": chat}])
    splits = load(dataset_name=str(train), validation_name=str(extra))
    assert answers(splits.validation) == ["b"]


def read_in_worker(data: Conversations, indices: Sequence[int]) -> list[Conversation]:
    return [data[i] for i in indices]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_data_sets_travel_to_spawned_workers(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        name = write_pictured(tmp_path, "rows.jsonl", {"query": "q", "label": "a"})
    else:
        write = write_chartqa_folder if kind == "parquet" else save_chartqa_to_disk
        name = write(tmp_path / "charts", train=3, val=0, test=0, seed=1)
    data = load(validation=False, dataset_name=str(name)).train
    assert data is not None
    assert len(pickle.dumps(data)) < 20_000
    # A pool of multiprocessing waits for ever for a worker that died; this one says so.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(read_in_worker, data, range(len(data))).result() == [data[i] for i in range(len(data))]


def test_the_explanation_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(4))
    with caplog.at_level(logging.INFO):
        splits = load(dataset_name=str(path))
    assert splits.explanation in caplog.text
    assert "columns as above" in splits.explanation
