"""Which split a file of several belongs to: every name and folder that says it, and those that say two things."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.datasets import save_chartqa_to_disk, write_jsonl
from support.tars import write_chart_tar
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.sources.files import find_source
from vlm_lora.errors import DataError

ROW = {"query": "q", "label": "l"}


def write(folder: Path, *names: str) -> None:
    for name in names:
        write_jsonl(folder / name, [ROW])


def found(typed: str | Path, root: Path) -> dict[str, list[str]]:
    """Return the names of the files below a folder by split."""
    files = find_source(str(typed)).files
    assert files is not None
    return {split: [str(path.relative_to(root)) for path in paths] for split, paths in files.items()}


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("infographicsVQA_train_v1.0.json", "infographicsVQA_val_v1.0_withQT.json", "val"),
        ("cc3m-train-0000.jsonl", "cc3m-validation-0000.jsonl", "validation"),
        ("coco_train2014.jsonl", "coco_val2014.jsonl", "val"),
        ("instances_train2017.jsonl", "instances_val2017.jsonl", "val"),
        ("train2015.jsonl", "test2015.jsonl", "test"),
        ("llava_train_000.jsonl", "llava_eval_000.jsonl", "eval"),
        ("chartqa_train_00000-of-00001.jsonl", "chartqa_val_00000-of-00001.jsonl", "val"),
        ("train.jsonl", "v2_test-dev2015_questions.jsonl", "test"),
        ("train/part-0.jsonl", "val/part-0.jsonl", "val"),
        ("coco_train2014/part-0.jsonl", "coco_val2014/part-0.jsonl", "val"),
    ],
)
def test_a_split_is_read_in_a_folder_a_glob_and_a_list(tmp_path: Path, train: str, other: str, split: str) -> None:
    write(tmp_path, train, other)
    ways = {
        "folder": str(tmp_path),
        "glob": f"{tmp_path}/**/*.json*",
        "list": f"{tmp_path / train},{tmp_path / other}",
        "brace": f"{tmp_path}/{{{train},{other}}}",
    }
    for way, typed in ways.items():
        assert found(typed, tmp_path) == {"train": [train], split: [other]}, way


def test_folders_between_the_glob_and_the_file_say_it_too(tmp_path: Path) -> None:
    write(tmp_path / "d2", "train/en/part-0.jsonl", "val/en/part-0.jsonl")
    assert found(tmp_path / "d2" / "*" / "en" / "part-*.jsonl", tmp_path / "d2") == {
        "train": ["train/en/part-0.jsonl"],
        "val": ["val/en/part-0.jsonl"],
    }
    # The same where only validation files are found: what the glob leaves open decides, not what is there.
    assert list(found(tmp_path / "d2" / "v*" / "en" / "part-*.jsonl", tmp_path)) == ["val"]


def test_folders_that_the_user_names_say_nothing(tmp_path: Path) -> None:
    write(tmp_path / "test_of_mine" / "val", "part-0.jsonl", "part-1.jsonl")
    both = ["part-0.jsonl", "part-1.jsonl"]
    folder = tmp_path / "test_of_mine" / "val"
    for typed in (folder, folder / "*.jsonl", f"{folder}/part-{{0..1}}.jsonl"):
        assert found(typed, folder) == {"train": both}


@pytest.mark.parametrize("name", ["contest", "latest", "evaluate", "value", "attest", "devices", "unvalidated2"])
def test_words_inside_other_words_say_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}-0.jsonl", f"{name}-1.jsonl", "more.jsonl")
    assert list(found(tmp_path, tmp_path)) == ["train"]
    write(tmp_path, "val.jsonl")  # the control: next to a name that speaks they are refused
    with pytest.raises(DataError, match=f"Nothing says to which split .*{name}-0.jsonl"):
        find_source(str(tmp_path))


@pytest.mark.parametrize("name", ["my_test_set.jsonl", "train_val.jsonl", "x_trainval.jsonl", "latest.jsonl"])
def test_a_file_that_is_named_alone_is_trained_on(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "train.jsonl")
    assert found(tmp_path / name, tmp_path) == {"train": [name]}
    assert found(f"{tmp_path}/{{{name},{name}}}", tmp_path) == {"train": [name]}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(f"{name}.jsonl", "val") for name in ("instances_val2017", "val2014", "coco_val2014", "chartqa_val_0-of-1")],
        *[(f"{name}.jsonl", "test") for name in ("road_test", "test-00000-of-00001", "v2_test-dev2015", "test-dev")],
        ("cc3m-validation-0000.jsonl", "validation"),
    ],
)
def test_a_file_that_is_named_alone_is_of_its_outer_word_s_split_as_in_a_folder(
    tmp_path: Path, name: str, split: str
) -> None:
    write(tmp_path, name, "train.jsonl")
    assert found(tmp_path / name, tmp_path) == {split: [name]}
    assert found(tmp_path, tmp_path) == {"train": ["train.jsonl"], split: [name]}


@pytest.mark.parametrize("name", ["train_val.json", "trainval.json", "instances_trainval2017.json", "val-test.json"])
def test_a_name_of_two_splits_is_refused_beside_others(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, "test.json")
    for typed in (tmp_path, tmp_path / "*.json", f"{tmp_path / name},{tmp_path}/test.json"):
        with pytest.raises(DataError, match=rf"{name} is called \w+ and \w+, .*test\.json.*--dataset_name FILE"):
            find_source(str(typed))


def test_the_cure_of_a_doubtful_name_helps(tmp_path: Path) -> None:
    write(tmp_path, "road_test.jsonl", "questions.jsonl", "train_val.jsonl", "test.jsonl")
    typed = f"{tmp_path}/{{road_test,questions}}.jsonl"
    with pytest.raises(DataError, match=r"Nothing says .*questions\.jsonl.* one by one: --dataset_name FILE") as caught:
        find_source(typed)
    said = str(caught.value)
    assert f"(several with a space between, but {tmp_path}/road_test.jsonl only under another name)" in said
    assert said.count("--validation_name FILE") == 1
    assert found(tmp_path / "questions.jsonl", tmp_path) == {"train": ["questions.jsonl"]}
    assert found(tmp_path / "road_test.jsonl", tmp_path) == {"test": ["road_test.jsonl"]}
    with pytest.raises(DataError, match=r"train_val\.jsonl is called train and val, .*, but .*/test\.jsonl only under"):
        find_source(f"{tmp_path}/{{train_val,test}}.jsonl")
    assert found(tmp_path / "train_val.jsonl", tmp_path) == {"train": ["train_val.jsonl"]}


def test_messages_speak_of_the_flag_that_was_typed(tmp_path: Path) -> None:
    write(tmp_path / "a", "train_val.jsonl", "test.jsonl")
    write(tmp_path / "b", "test/train-0.jsonl", "test/val-0.jsonl")
    write(tmp_path / "c", "part-0-of-2.jsonl")
    write(tmp_path / "d", "test.jsonl", "other.jsonl")
    for folder in "abcd":
        with pytest.raises(DataError, match="--validation_name ") as caught:
            find_source(str(tmp_path / folder), flag="validation_name")
        assert "--dataset_name" not in str(caught.value)
        assert folder == "c" or "name one file alone: --validation_name FILE, whatever it is called." in str(
            caught.value
        )
        with pytest.raises(DataError, match="--dataset_name "):
            find_source(str(tmp_path / folder))
    with pytest.raises(DataError, match=r"Rename it, or name one file alone: --input FILE, whatever it is called\."):
        find_source(str(tmp_path / "a"), flag="input")
    alone = DataConfig(validation_name=str(tmp_path / "a" / "train_val.jsonl"))
    read = load_splits(alone, need_train=False, need_validation=True)
    assert read.validation is not None
    assert len(read.validation) == 1


def test_shards_of_two_splits_without_others_are_trained_on_where_train_is_among_them(tmp_path: Path) -> None:
    write(tmp_path / "a", "trainval-0.jsonl", "trainval-1.jsonl")
    assert list(found(tmp_path / "a", tmp_path)) == ["train"]
    write(tmp_path / "b", "val_test-0.jsonl", "val_test-1.jsonl")
    assert list(found(tmp_path / "b", tmp_path)) == ["val"]


def test_a_folder_and_a_name_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "test/train-0.jsonl", "train/part-0.jsonl")
    with pytest.raises(DataError, match=r"train-0\.jsonl is called train and lies in a folder that is called test"):
        find_source(str(tmp_path))
    write(tmp_path / "two", "train_val/train-0.jsonl", "train_val/val-0.jsonl")
    assert list(found(tmp_path / "two", tmp_path)) == ["train", "val"]


def test_ranges_of_one_and_folders_in_a_list_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a", "c-0000.jsonl", "c-0001.jsonl")
    write(tmp_path / "b", "train.jsonl", "val.jsonl")
    write_chart_tar(tmp_path / "t" / "c.tar", [4])
    assert found(f"{tmp_path}/a/c-{{0000..0000}}.jsonl", tmp_path) == {"train": ["a/c-0000.jsonl"]}
    assert found(f"{tmp_path}/a,{tmp_path}/t", tmp_path) == {"train": ["a/c-0000.jsonl", "a/c-0001.jsonl", "t/c.tar"]}
    assert found(f"{tmp_path}/b,{tmp_path}/b", tmp_path) == {"train": ["b/train.jsonl"], "val": ["b/val.jsonl"]}
    with pytest.raises(DataError, match=r"c-0009\.jsonl: no file matches"):
        find_source(f"{tmp_path}/a/c-{{0009..0009}}.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no data files"):
        find_source(f"{tmp_path}/a,{tmp_path}/empty")


def test_a_saved_folder_in_a_list_is_refused_with_what_to_type(tmp_path: Path) -> None:
    write(tmp_path / "a", "rows.jsonl")
    save_chartqa_to_disk(tmp_path / "saved", train=1, val=0, test=0, seed=1)
    with pytest.raises(DataError, match=r"saved is a folder of save_to_disk.*space instead of the comma"):
        find_source(f"{tmp_path}/a,{tmp_path}/saved")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["train-00000-of-00004.jsonl", "train-00001-of-00004.jsonl"], "train-00002-of-00004.jsonl, train-00003-of"),
        (["p_1-of-3.csv", "p_3-of-3.csv"], r"p_2-of-3.csv\. "),
        (["train-0-of-2-ab.jsonl"], r"train-1-of-2-ab.jsonl\. "),
        (["train-0-of-1.jsonl", "val-1-of-2.jsonl", "val-2-of-2.jsonl", "test-1-of-2.jsonl"], "test-0-of-2"),
        (["a/train-0-of-2.jsonl", "b/train-0-of-2.jsonl", "b/train-1-of-2.jsonl"], "train-1-of-2"),
        (["p-1-of-4.csv", "p-2-of-4.csv", "p-3-of-4.csv"], r"p-0-of-4\.csv or p-4-of-4\.csv\. "),
        (["p-01-of-04.csv", "p-03-of-04.csv"], r"p-00-of-04\.csv or p-04-of-04\.csv, p-02-of-04\.csv\. "),
        (["p-0-of-4.csv", "p-1-of-4.csv", "p-2-of-4.csv"], r"p-3-of-4\.csv\. "),
        (["a-0-of-2.tar"], r"a-1-of-2\.tar"),
        (["train-0-of-900.jsonl"], r"train-5-of-900\.jsonl, \.\.\."),
    ],
)
def test_missing_shards_are_named(tmp_path: Path, names: list[str], missing: str) -> None:
    write(tmp_path, *names)
    with pytest.raises(DataError, match=rf"missing: .*{missing}.*--dataset_name"):
        find_source(f"{tmp_path}/**/*-of-*")
    if not names[0].startswith("a/"):
        with pytest.raises(DataError, match=rf"missing: .*{missing}"):
            find_source(str(tmp_path))
        with pytest.raises(DataError, match=rf"missing: .*{missing}"):
            find_source(f"{tmp_path},{write_jsonl(tmp_path.with_suffix('.jsonl'), [ROW])}")


def test_shards_that_are_all_there_or_named_one_by_one_are_read(tmp_path: Path) -> None:
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    write(tmp_path / "all", *names, "val_1-of-2-a.jsonl", "val_2-of-2-b.jsonl", "test-of-3.jsonl")
    assert [len(paths) for paths in found(tmp_path / "all", tmp_path).values()] == [1, 2, 2]
    some = [f"train-{number:05d}-of-00020.jsonl" for number in (0, 1, 12)]
    write(tmp_path / "some", *some)
    folder = tmp_path / "some"
    assert found(folder / some[0], folder) == {"train": some[:1]}
    for typed in (f"{folder}/{some[0]},{folder}/{some[2]}", f"{folder}/train-000{{00,12}}-of-00020.jsonl"):
        assert found(typed, folder) == {"train": [some[0], some[2]]}
    assert found(folder / "train-0000[01]-of-*", folder) == {"train": some[:2]}
    with pytest.raises(DataError, match="missing: train-00002-of"):
        find_source(str(folder / "train-0000[012]-of-*"))


def test_of_two_possible_shards_a_pattern_leaves_the_one_that_it_asks_for(tmp_path: Path) -> None:
    write(tmp_path, "p-1-of-4.csv", "p-2-of-4.csv", "p-3-of-4.csv")
    assert len(found(tmp_path / "p-[123]-of-4.csv", tmp_path)["train"]) == 3
    for digits, missing in (("0123", "p-0-of-4"), ("1234", "p-4-of-4")):
        with pytest.raises(DataError, match=rf"missing: {missing}\.csv\. "):
            find_source(str(tmp_path / f"p-[{digits}]-of-4.csv"))
