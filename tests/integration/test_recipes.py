"""The recipes of examples/recipes, as users start them, with a tiny model and rows of their kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_chartqa_folder, write_image, write_jsonl
from vlm_lora.backend import installed
from vlm_lora.cli.main import main
from vlm_lora.config.files import read_mapping

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
HERE = [path for path in RECIPES if (path.stem == "gaudi") == installed()["habana"].probe().usable]


def charts(folder: Path) -> Path:
    return write_chartqa_folder(folder, train=3, val=1, test=1, seed=0)


def chats(folder: Path) -> Path:
    write_image(folder / "0.png", seed=0)
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A square."}]
    return write_jsonl(folder / "chats.jsonl", [{"messages": turns, "images": ["0.png"]}] * 3)


def boxes(folder: Path) -> Path:
    write_image(folder / "0.png", seed=0, size=(64, 48))
    objects = {"bbox": [[4, 4, 10, 12]], "category": ["mask"]}
    return write_jsonl(folder / "train.jsonl", [{"image": "0.png", "objects": objects}] * 3)


def pages(folder: Path) -> Path:
    write_image(folder / "0.png", seed=0, size=(48, 40))
    lines = [{"text": f"line {n}", "bbox": [2, 10 * n, 40, 10 * n + 8]} for n in (1, 2)]
    return write_jsonl(folder / "train.jsonl", [{"image": "0.png", "text": {"lines": lines}}] * 3)


def both(folder: Path) -> str:
    return f"{charts(folder / 'charts')} + {chats(folder)}"


ROWS: dict[str, Callable[[Path], object]] = {
    "boxes": boxes,
    "chart_qa": charts,
    "chat": chats,
    "full_weights_zero3": charts,
    "gaudi": charts,
    "mixture": both,
    "ocr_pages": pages,
    "qlora": charts,
}


def test_every_recipe_has_rows_of_its_kind() -> None:
    assert {path.stem for path in RECIPES} == ROWS.keys()
    for path in RECIPES:
        settings = read_mapping(path)
        assert settings.keys() >= {"model_name_or_path", "dataset_name", "output_dir"}
        assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_a_recipe_shows_the_rows_that_it_would_train_on(
    path: Path, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    rows = ROWS[path.stem](tmp_path / "data")
    model = "qwen2_5_vl" if "Qwen" in str(read_mapping(path)["model_name_or_path"]) else "gemma3"
    given = {"model_name_or_path": model_folder(model), "dataset_name": rows, "output_dir": tmp_path / "out"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    assert main(["train", "--config", str(path), *words, "--dry_run", "--no_model"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "nothing was trained" in shown
    assert (tmp_path / "out" / "dry_run.html").is_file()


def test_a_recipe_with_an_unknown_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The control."""
    file = tmp_path / "wrong.yaml"
    file.write_text(HERE[0].read_text(encoding="utf-8") + "lerning_rate: 1\n", encoding="utf-8")
    assert main(["train", "--config", str(file), "--dry_run", "--no_model"]) == 1
    assert "lerning_rate is not a known key" in capsys.readouterr().err
