"""Files of one split that declare different names for the numbers of a column are refused, however they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from support.datasets import write_image
from support.read_back import read_back
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits
from vlm_lora.data.mixture import JOINT
from vlm_lora.data.sources import named as sources
from vlm_lora.errors import DataError


def write(path: Path, names: list[str], feature: str = "label") -> None:
    label = datasets.ClassLabel(names=names)
    box = datasets.Sequence(datasets.Value("int64"))
    boxes = {"bbox": datasets.Sequence(box), "category": datasets.Sequence(label)}
    features = datasets.Features({"question": datasets.Value("string"), "label": label})
    row: dict[str, Any] = {"question": ["q"], "label": [0]}
    if feature == "objects":
        features = datasets.Features({"image": datasets.Value("string"), "objects": boxes})
        row = {"image": ["0.png"], "objects": [{"bbox": [[1, 1, 5, 5]], "category": [0]}]}
    datasets.Dataset.from_dict(row, features=features).to_parquet(path)


def told(folder: Path, **settings: Any) -> list[Any]:
    return [turns[1] for turns in read_back(folder / "data", folder, image_root=str(folder), **settings).told]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.mark.parametrize("large", [False, True])
def test_answers_of_different_names_are_refused(large: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(sources, "PARQUET_IN_MEMORY", 0)
    first, second = folder / "data" / "x.parquet", folder / "data" / "y.parquet"
    write(first, ["cat", "dog"])
    write(second, ["dog", "cat"])
    said = rf"'label': {first} declares \('cat', 'dog'\) for its numbers, and {second} \('dog', 'cat'\)"
    with pytest.raises(DataError, match=rf"{said}.* --dataset_name {first} {second}\."):
        told(folder)
    assert told(folder, prompt_column="label", response_column="question") == [["q"], ["q"]], "not read by names"
    apart = DataConfig(dataset_name=f"{first}{JOINT}{second}", validation_fraction=0.0)
    train = load_splits(apart, need_train=True, need_validation=False).train
    assert train is not None
    assert [train[row].turns[1].text for row in range(2)] == ["cat", "dog"]
    write(second, ["cat", "dog"])
    assert told(folder) == [["cat"], ["cat"]], "the control"


def test_boxes_of_different_names_are_refused(folder: Path) -> None:
    write(folder / "data" / "x.parquet", ["cat", "dog"], "objects")
    write(folder / "data" / "y.parquet", ["dog", "cat"], "objects")
    said = r"'objects': .*x\.parquet declares \('cat', 'dog'\) under 'category' for its numbers, and .*y\.parquet"
    with pytest.raises(DataError, match=said):
        told(folder)
    assert all('"label": "cow"' in answer for (answer,) in told(folder, box_labels=("cow", "dog")))
    write(folder / "data" / "y.parquet", ["cat", "dog"], "objects")
    assert all('"label": "cat"' in answer for (answer,) in told(folder)), "the control"


def test_streams_look_at_all_files(folder: Path) -> None:
    write_image(folder / "0.png", seed=0)
    write(folder / "data" / "x.parquet", ["cat", "dog"])
    write(folder / "data" / "y.parquet", ["cat", "dog"])
    config = DataConfig(dataset_name=str(folder / "data"), validation_fraction=0.0, streaming=True)
    assert load_splits(config, need_train=True, need_validation=False).train is not None
    write(folder / "data" / "y.parquet", ["dog", "cat"])
    with pytest.raises(DataError, match=r"x\.parquet declares .*, and .*y\.parquet"):
        load_splits(config, need_train=True, need_validation=False)
