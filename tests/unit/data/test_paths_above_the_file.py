"""Where a relative image path starts, and where it may lead, are two things."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.conversation import ImageRef
from vlm_lora.data.dataset import load_splits
from vlm_lora.errors import DataError


def read(data: Path, root: Path | None) -> str:
    """Return the image's path as it is read, from the folder of both."""
    config = DataConfig(dataset_name=str(data), validation_fraction=0.0, image_root=None if root is None else str(root))
    train = load_splits(config, need_train=True, need_validation=False).train
    assert train is not None
    (image,) = [part for turn in train[0].turns for part in turn.parts if isinstance(part, ImageRef)]
    return str(image.source)


@pytest.mark.parametrize("path", ["../train2017/a.png", "../../set/train2017/a.png"])
def test_a_path_above_the_file_is_read_inside_the_root(path: str, tmp_path: Path) -> None:
    home = tmp_path / "set"
    (home / "train2017").mkdir(parents=True)
    (home / "annotations").mkdir()
    image = write_image(home / "train2017" / "a.png", seed=0)
    data = write_jsonl(home / "annotations" / "train.jsonl", [{"image": path, "question": "q", "answer": "a"}])
    assert read(data, home) == str(image)
    with pytest.raises(DataError, match=r"outside .*annotations"):
        read(data, None)  # the control: nobody said that it may
    with pytest.raises(DataError, match=r"outside .*annotations.* Nor does it lead to an image there from "):
        read(data, home / "annotations")


def test_the_root_comes_first_and_a_name_from_the_files_own_folder_second(tmp_path: Path) -> None:
    for folder in ("rows", "images"):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "both.png", seed=0)
    write_image(tmp_path / "rows" / "own.png", seed=0)
    both, own = ([{"image": f"{name}.png", "question": "q", "answer": "a"}] for name in ("both", "own"))
    images = tmp_path / "images"
    assert read(write_jsonl(tmp_path / "rows" / "both.jsonl", both), images) == str(images / "both.png")
    with pytest.raises(DataError, match="cannot be opened"):
        read(write_jsonl(tmp_path / "rows" / "own.jsonl", own), images)  # outside of the root
    assert read(tmp_path / "rows" / "own.jsonl", tmp_path) == str(tmp_path / "rows" / "own.png")
