"""Hub ids, files, folders and globs: the same rows whatever holds them, and a message where there are "
"none."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import vlm_lora.data.sources.named as sources
from support.datasets import (
    chartqa_rows,
    save_chartqa_to_disk,
    write_chartqa_folder,
    write_image,
    write_jsonl,
)
from vlm_lora.data.formats.arrow_files import parquet_features, stream_parquet
from vlm_lora.data.formats.rows import Rows
from vlm_lora.data.sources.named import open_source
from vlm_lora.errors import DataError

ROWS = [{"query": f"wie viel? {n}", "label": f"Ü{n}"} for n in range(5)]


@pytest.fixture(autouse=True)
def no_decoding_and_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening must decode no image, and tests share no cache."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_json(path: Path, rows: Sequence[Any]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)


def write_arrow(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(rows))
    opener = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS: dict[str, Callable[[Path, Any], Any]] = {
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
    ".arrow": write_arrow,
    ".feather": write_arrow,
}


def content(rows: Rows) -> list[dict[str, Any]]:
    return [dict(rows[i]) for i in range(len(rows))]


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, ROWS)
    source = open_source(str(path))
    assert list(source.splits) == ["train"]
    rows = source.splits["train"]
    assert content(rows) == ROWS
    assert rows.columns == ("query", "label")
    line = {".csv": 5, ".tsv": 5, ".jsonl": 4, ".ndjson": 4, ".json": 1}.get(path.suffix)
    assert str(rows.source(3)) == f"{path} row 3" + (f" (line {line})" if line else "")
    assert content(pickle.loads(pickle.dumps(rows))) == ROWS
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_names_that_are_no_utf8_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    plain = tmp_path / f"rows{suffix}"
    WRITERS[suffix](plain, ROWS)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es")) / f"x{suffix}"
    path.parent.mkdir()
    plain.rename(path)
    rows = open_source(str(path)).splits["train"]
    assert content(rows) == ROWS
    assert content(pickle.loads(pickle.dumps(rows))) == ROWS
    if suffix == ".parquet":
        monkeypatch.setattr(sources, "PARQUET_IN_MEMORY", 0)
        assert content(open_source(str(path)).splits["train"]) == ROWS
        assert list(stream_parquet(path)) == ROWS
        assert parquet_features(path) == {}


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_a_changed_file_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, ROWS)
    stamp = path.stat().st_mtime_ns
    open_source(str(path))
    changed = [{"query": row["query"], "label": row["label"].lower()} for row in ROWS]
    path.unlink()
    WRITERS[suffix](path, changed)
    os.utime(path, ns=(stamp, stamp))
    assert content(open_source(str(path)).splits["train"]) == changed


def test_large_parquet_goes_through_the_arrow_cache_and_is_read_again_when_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PARQUET_IN_MEMORY", 0)
    folder = write_chartqa_folder(tmp_path / "charts", train=3, val=0, test=0, seed=1)
    extra = folder / "data" / "train-more.parquet"
    write_parquet(extra, chartqa_rows(2, seed=900))
    rows = open_source(str(folder)).splits["train"]
    assert (tmp_path / "cache").exists()
    assert content(rows) == [*chartqa_rows(3, seed=100_000), *chartqa_rows(2, seed=900)]
    assert str(rows.source(4)) == f"{extra} row 1"
    assert rows.origin(4).folder == folder / "data"
    assert content(pickle.loads(pickle.dumps(rows))) == content(rows)
    write_parquet(extra, chartqa_rows(2, seed=950))
    os.utime(extra, ns=(10**18, 10**18))
    assert content(open_source(str(folder)).splits["train"])[3:] == chartqa_rows(2, seed=950)


@pytest.mark.parametrize("damage", ["one bit", "half", "empty", "missing", "none"])
def test_a_damaged_copy_of_datasets_is_made_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sources, "PARQUET_IN_MEMORY", 0)
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "hashes"))
    path = tmp_path / "rows.parquet"
    write_parquet(path, [{"query": "How many?", "label": "seven"}] * 3)
    expected = content(open_source(str(path)).splits["train"])
    [copy] = (tmp_path / "cache").rglob("*.arrow")
    whole = copy.read_bytes()
    place = whole.index(b"seven")
    damaged = {
        "one bit": whole[:place] + b"r" + whole[place + 1 :],
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "missing": b"",
        "none": whole,
    }
    copy.write_bytes(damaged[damage])
    if damage == "missing":
        copy.unlink()
    with caplog.at_level("WARNING"):
        assert content(open_source(str(path)).splits["train"]) == expected
    assert ("the Arrow copy that `datasets` keeps is made again" in caplog.text) == (damage != "none")
    if damage == "one bit":  # the control: nobody else looks at it
        [copy] = (tmp_path / "cache").rglob("*.arrow")
        copy.write_bytes(damaged[damage])
        monkeypatch.setattr(sources, "damaged", lambda files: [])
        assert content(open_source(str(path)).splits["train"]) != expected


def test_a_damaged_copy_of_hub_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made again it would have to be downloaded."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "hashes"))
    write_parquet(tmp_path / "rows.parquet", ROWS)
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **kwargs: load("parquet", data_files=str(tmp_path / "rows.parquet"))
    )
    assert content(open_source("someone/rows").splits["train"]) == ROWS
    [copy] = (tmp_path / "cache").rglob("*.arrow")
    whole = copy.read_bytes()
    place = len(whole) // 2
    copy.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(DataError, match=rf"not as it was when a run first used it: .*{copy.name}.* Delete the folder "):
        open_source("someone/rows")
    shutil.rmtree(copy.parent)
    assert content(open_source("someone/rows").splits["train"]) == ROWS, "what was made anew is another file"


def test_csv_values_stay_as_they_are_written_and_empty_cells_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('query,label\n007,1.10\nNA,\n"two\nlines, ""quoted""",null\n', encoding="utf-8-sig")
    assert [tuple(row.values()) for row in content(open_source(str(path)).splits["train"])] == [
        ("007", "1.10"),
        ("NA", None),
        ('two\nlines, "quoted"', "null"),
    ]


def test_long_csv_fields_are_read_and_the_limit_of_python_is_left_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = tmp_path / "a.csv"
    write_csv(path, [{"image": "x" * 200_000, "query": "q"}])
    assert len(open_source(str(path)).splits["train"][0]["image"]) == 200_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv line 3: 3 values.*2 columns"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv line 2: not CSV"),
        ("a.csv", b"a,a\n1,2\n", "two columns are called 'a'"),
        ("a.csv", b"a,b\n1,\xe9\n", "not UTF-8"),
        ("a.csv", b"", "empty"),
        ("a.jsonl", b'{"a": 1}\n{"a": ', r"a\.jsonl line 2"),
        ("a.parquet", b"PAR1 nonsense PAR1", "not a readable Parquet file"),
        ("a.arrow", b"nonsense, quite long nonsense", "not an Arrow file"),
        ("a.arrow", b"", "empty"),
        ("a.tar", b"x", r"a\.tar is no tar"),
        ("a.txt", b"x", r"ending in '\.txt' are not read. Readable are \.json, \.jsonl"),
    ],
)
def test_malformed_and_unknown_files_are_named(tmp_path: Path, name: str, text: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("write", [write_chartqa_folder, save_chartqa_to_disk])
def test_chartqa_folders_keep_names_order_and_undecoded_images(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = write(tmp_path / "charts", train=4, val=2, test=1, seed=1)
    source = open_source(str(folder))
    assert {name: len(rows) for name, rows in source.splits.items()} == {"train": 4, "val": 2, "test": 1}
    assert content(source.splits["train"]) == chartqa_rows(4, seed=100_000)
    assert content(source.splits["val"]) == chartqa_rows(2, seed=140_000)
    pictures = [row["image"]["bytes"] for rows in source.splits.values() for row in content(rows)]
    assert len(set(pictures)) == 7


def test_a_saved_single_data_set_is_read_with_nested_images_undecoded(tmp_path: Path) -> None:
    png = chartqa_rows(1, seed=1)[0]["image"]["bytes"]
    features = datasets.Features(
        {"images": datasets.Sequence(datasets.Image()), "size": datasets.Array2D((1, 2), "int64")}
    )
    saved = datasets.Dataset.from_dict(
        {"images": [[{"bytes": png, "path": None}]] * 2, "size": [[[1, 2]]] * 2}, features
    )
    saved.save_to_disk(str(tmp_path / "one"))
    source = open_source(str(tmp_path / "one"))
    assert list(source.splits) == ["train"]
    assert source.splits["train"][1] == {"images": [{"bytes": png, "path": None}], "size": [[1, 2]]}


def test_folders_of_split_files_and_split_folders(tmp_path: Path) -> None:
    flat, nested = tmp_path / "flat", tmp_path / "nested"
    for split, first in (("train", 0), ("dev", 2), ("test", 4)):
        write_jsonl(flat / f"{split}.jsonl", ROWS[first : first + 2])
        write_jsonl(nested / split / "part-1.jsonl", ROWS[first : first + 2])
    (flat / "README.md").write_text("x", encoding="utf-8")
    (flat / "dataset_infos.json").write_text("{}", encoding="utf-8")
    for folder in (flat, nested):
        splits = open_source(str(folder)).splits
        assert {name: content(rows) for name, rows in splits.items()} == {
            "train": ROWS[:2],
            "dev": ROWS[2:4],
            "test": ROWS[4:],
        }


def test_nameless_files_are_train_alone_and_an_error_beside_named_ones(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "part-1.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "d" / "part-2.jsonl", ROWS[1:])
    assert content(open_source(str(tmp_path / "d")).splits["train"]) == ROWS
    write_jsonl(tmp_path / "d" / "train.jsonl", ROWS[:2])
    with pytest.raises(
        DataError, match=r"which split \S+part-1.jsonl, \S+part-2.jsonl belong.*train\.jsonl.*Put train"
    ):
        open_source(str(tmp_path / "d"))


def test_two_formats_of_one_split_are_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "train.jsonl", ROWS)
    write_csv(tmp_path / "d" / "train.csv", ROWS)
    with pytest.raises(DataError, match="several formats"):
        open_source(str(tmp_path / "d"))


def test_sub_folders_are_chosen_by_configuration_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "small" / "train.jsonl", ROWS)
    assert content(open_source(str(tmp_path / "d"), config_name="small").splits["train"]) == ROWS
    with pytest.raises(DataError, match=r"holds small/.*--dataset_config_name"):
        open_source(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"--dataset_config_name smal: .* no such sub-folder"):
        open_source(str(tmp_path / "d"), config_name="smal")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_image_folders_with_metadata(tmp_path: Path, suffix: str) -> None:
    rows = [{"file_name": "a.png", "prompt": "q", "response": "a"}]
    for split in ("train", "val"):
        write_image(tmp_path / "d" / split / "a.png", seed=1)
        WRITERS[suffix](tmp_path / "d" / split / f"metadata{suffix}", rows)
    splits = open_source(str(tmp_path / "d")).splits
    assert {name: content(found) for name, found in splits.items()} == {"train": rows, "val": rows}
    assert splits["val"].origin(0).folder == tmp_path / "d" / "val"


def test_image_folders_that_say_nothing_or_too_little_are_explained(tmp_path: Path) -> None:
    write_image(tmp_path / "plain" / "cats" / "a.png", seed=1)
    with pytest.raises(DataError, match=r"holds images.*metadata\.jsonl"):
        open_source(str(tmp_path / "plain"))
    write_image(tmp_path / "mixed" / "test" / "a.png", seed=1)
    for column in ("file_name", "image"):
        write_jsonl(tmp_path / "mixed" / "metadata.jsonl", [{column: "test/a.png"}])
        with pytest.raises(DataError, match="metadata file of its own"):
            open_source(str(tmp_path / "mixed"))
    write_jsonl(tmp_path / "two" / "metadata.jsonl", ROWS)
    write_csv(tmp_path / "two" / "metadata.csv", ROWS)
    with pytest.raises(DataError, match="several metadata files"):
        open_source(str(tmp_path / "two"))


@pytest.mark.parametrize("column", ["file_name", "file_names", "image_file_name", "left_file_names"])
def test_image_folders_with_other_data_files_are_refused_with_both(tmp_path: Path, column: str) -> None:
    row = {column: "a.png", "prompt": "q", "response": "a"}
    metadata = write_jsonl(tmp_path / "d" / "metadata.jsonl", [row])
    (tmp_path / "d" / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert content(open_source(str(tmp_path / "d")).splits["train"]) == [row]
    write_jsonl(tmp_path / "d" / "train.jsonl", ROWS)
    with pytest.raises(
        DataError, match=r"image folder by \S+metadata\.jsonl.*: \S+train\.jsonl\. .*--dataset_name \S+meta"
    ):
        open_source(str(tmp_path / "d"))
    assert content(open_source(str(metadata)).splits["train"]) == [row]


def test_metadata_without_file_names_is_data_or_about_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "d"
    write_jsonl(folder / "train.jsonl", ROWS)
    (folder / "metadata.json").write_text('{"name": "charts", "license": "MIT"}', encoding="utf-8")
    assert content(open_source(str(folder)).splits["train"]) == ROWS
    assert "Not taken as rows" in caplog.text
    assert str(folder / "metadata.json") in caplog.text
    (folder / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"metadata\.json: an object with the keys 'name', 'license'"):
        open_source(str(folder))
    # Rows without file names are rows like any others.
    write_json(folder / "metadata.json", ROWS[:2])
    assert content(open_source(str(folder)).splits["train"]) == ROWS[:2]
    write_json(folder / "more.json", ROWS[2:])
    assert content(open_source(str(folder)).splits["train"]) == ROWS


def test_broken_metadata_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "train.jsonl", ROWS)
    (tmp_path / "d" / "metadata.jsonl").write_text('{"file_name": "a.png", \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.jsonl line 1: not JSON"):
        open_source(str(tmp_path / "d"))


def test_empty_folders_are_explained(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match=r"no data files.*\.parquet.*holds nothing"):
        open_source(str(tmp_path / "d"))


def test_globs_take_files_in_order_and_group_them_by_split(tmp_path: Path) -> None:
    for number in (2, 1, 3):
        write_jsonl(tmp_path / f"train-{number}.jsonl", ROWS[number : number + 1])
    write_jsonl(tmp_path / "deep" / "val-1.jsonl", ROWS[:1])
    source = open_source(str(tmp_path / "**" / "*.jsonl"))
    assert {name: content(rows) for name, rows in source.splits.items()} == {
        "train": ROWS[1:4],
        "val": ROWS[:1],
    }
    with pytest.raises(DataError, match="no file matches"):
        open_source(str(tmp_path / "*.csv"))


@pytest.mark.parametrize("name", ["gone.jsonl", "./gone", "/gone/gone", "a/b/c", "gone dir"])
def test_what_is_not_there_is_said(name: str) -> None:
    with pytest.raises(DataError, match=r"--dataset_name .*no such file or folder \(looked at /"):
        open_source(name)


def test_a_broken_save_to_disk_folder_is_named(tmp_path: Path) -> None:
    folder = save_chartqa_to_disk(tmp_path / "d", train=1, val=1, test=0, seed=1)
    (folder / "val" / "state.json").unlink()
    with pytest.raises(DataError, match="not a complete save_to_disk folder"):
        open_source(str(folder))


def test_a_hub_data_set_that_cannot_be_reached_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"--validation_name HuggingFaceM4/ChartQA.*could not be loaded.*local copy"):
        open_source("HuggingFaceM4/ChartQA", flag="validation_name")


def test_a_hub_data_set_is_loaded_by_id_and_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_chartqa_to_disk(tmp_path / "d", train=3, val=1, test=0, seed=1)
    asked = []

    def load(name: str, config: str | None, *, streaming: bool) -> Any:
        asked.append((name, config, streaming))
        return datasets.load_from_disk(str(folder))

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("owner/charts", config_name="human")
    assert asked == [("owner/charts", "human", False)]
    assert content(source.splits["train"]) == chartqa_rows(3, seed=100_000)
    assert str(source.splits["train"].source(2)) == "owner/charts [train] row 2"
    assert source.splits["train"].origin(2).folder is None
