"""`vlm-lora train` with no flag about the data but its path: the layouts that users of other tools bring."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_image, write_jsonl
from vlm_lora.cli.main import main

ROWS = range(4)


def named_images(folder: Path) -> list[str]:
    """Write an image for each row and return their names."""
    folder.mkdir()
    for row in ROWS:
        write_image(folder / f"{row}.png", seed=row)
    return [f"{row}.png" for row in ROWS]


def tabular_rows(names: list[str]) -> list[dict[str, str]]:
    return [{"image_path": name, "prompt": f"What is {name}?", "response": "a square"} for name in names]


def tabular_csv(folder: Path) -> Path:
    lines = [",".join(row.values()) for row in tabular_rows(named_images(folder))]
    path = folder / "train.csv"
    path.write_text("\n".join(["image_path,prompt,response", *lines]) + "\n", encoding="utf-8")
    return path


def tabular_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(tabular_rows(named_images(folder))), folder / "train.parquet")
    return folder / "train.parquet"


def messages_and_images(folder: Path) -> Path:
    rows = []
    for name in named_images(folder):
        asked = [{"type": "image"}, {"type": "text", "text": f"What is {name}?"}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "a square"}]
        rows.append({"messages": messages, "images": [name]})
    return write_jsonl(folder / "train.jsonl", rows)


def from_and_value(folder: Path, texts: list[str], images: Callable[[str], Mapping[str, Any]]) -> Path:
    """ShareGPT turns; `texts` are those of the user, and one of them has the image's place."""
    rows = []
    for name in named_images(folder):
        turns = [turn for text in texts for turn in ({"from": "human", "value": text}, {"from": "gpt", "value": "yes"})]
        rows.append({"id": name, "conversations": turns, **images(name)})
    path = folder / "train.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def llava_first_turn(folder: Path) -> Path:
    return from_and_value(folder, ["<image>\nIs it a square?", "Sure?"], lambda name: {"image": name})


def llava_last_turn(folder: Path) -> Path:
    return from_and_value(
        folder, ["May I show you something?", "Is it a square? <image>"], lambda name: {"image": name}
    )


def sharegpt_list(folder: Path) -> Path:
    return from_and_value(folder, ["Look:", "Is <image> a square?", "Sure?"], lambda name: {"images": [name]})


LAYOUTS = (tabular_csv, tabular_parquet, messages_and_images, llava_first_turn, llava_last_turn, sharegpt_list)


def trained(model: Path, data: Path, output: Path) -> int:
    command = f"train --model_name_or_path {model} --dataset_name {data} --output_dir {output}"
    return main([*command.split(), "--use_cpu", "--max_steps", "1", "--disable_tqdm", "--log_level", "error"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_path_is_enough(
    layout: Callable[[Path], Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = layout(tmp_path / "data")
    assert trained(model_folder("qwen2_5_vl"), data, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    pictures = [split["pictures"] for split in report["splits"].values()]
    assert [(split["least"], split["most"]) for split in pictures] == [(1, 1)] * 2, (
        "an image in each row of both splits"
    )
    assert report["bad"] == []


def test_a_place_without_an_image_is_not_passed_over(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = from_and_value(tmp_path / "data", ["<image> and <image>"], lambda name: {"image": name})
    assert trained(model_folder("qwen2_5_vl"), data, tmp_path / "out") == 1
    assert "2 places for images" in capsys.readouterr().err
