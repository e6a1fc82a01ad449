"""An earlier check is used again exactly as long as nothing has changed that a row depends on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from support.datasets import encode_png, save_chartqa_to_disk, write_chartqa_folder, write_jsonl
from vlm_lora.cli.main import main
from vlm_lora.data.conversation import Url
from vlm_lora.data.images.urls import keep, kept_file

HIT = "checked before, nothing has changed since"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").mkdir()
    for row in range(6):
        Image.new("RGB", (20, 20), (row * 40, 0, 0)).save(folder / "a" / f"{row}.png")
    shutil.copytree(folder / "a", folder / "b")
    Image.new("RGB", (40, 20)).save(folder / "b" / "5.png")
    (folder / "now").symlink_to("a")
    rows = [{"image": f"now/{row}.png", "question": "What?", "answer": "red"} for row in range(6)]
    write_jsonl(folder / "train.jsonl", rows)
    return folder


@pytest.fixture
def model(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("gemma3"), tmp_path / "model"))


@pytest.fixture
def is_hit(
    data: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., bool]:
    """Return a function that checks the data and says whether an earlier check was used; `log` is what it said."""
    monkeypatch.setenv("VLM_LORA_CACHE", str(tmp_path / "cache"))
    log = tmp_path / "log"

    def run(*words: str, dataset: Path = data, model: Path = model) -> bool:
        flags = ["--model_name_or_path", str(model), "--dataset_name", str(dataset), "--use_cpu", "--do_eval", "false"]
        main(["check", *flags, "--json", "--log_level", "info", *words])
        log.write_text(capsys.readouterr().err, encoding="utf-8")
        return HIT in log.read_text(encoding="utf-8")

    return run


def test_unchanged(is_hit: Callable[..., bool]) -> None:
    assert [is_hit(), is_hit()] == [False, True]


def test_policies_change_no_row(is_hit: Callable[..., bool]) -> None:
    assert [is_hit(), is_hit("--on_bad_sample", "skip", "--max_bad_fraction", "0.5")] == [False, True]


def change_size(data: Path) -> None:
    Image.new("RGB", (50, 30)).save(data / "a" / "3.png")


def change_time_alone(data: Path) -> None:
    path = data / "a" / "3.png"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def remove_image(data: Path) -> None:
    (data / "a" / "3.png").unlink()


def turn_link(data: Path) -> None:
    (data / "now").unlink()
    (data / "now").symlink_to("b")


def change_rows(data: Path) -> None:
    path = data / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("red", "blue"), encoding="utf-8")


@pytest.mark.parametrize("change", [change_size, change_time_alone, remove_image, turn_link, change_rows])
def test_changed_data(change: Callable[[Path], None], data: Path, is_hit: Callable[..., bool]) -> None:
    assert [is_hit(), is_hit()] == [False, True]
    change(data)
    assert not is_hit()


def test_changed_template(model: Path, is_hit: Callable[..., bool]) -> None:
    assert [is_hit(), is_hit()] == [False, True]
    path = model / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8") + "{# no difference to any row, but who knows #}", "utf-8")
    assert not is_hit()


def test_changed_processor(model: Path, is_hit: Callable[..., bool]) -> None:
    assert not is_hit()
    # transformers 5 reads the one, 4.55 the other.
    for path in (model / "processor_config.json", model / "preprocessor_config.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings.get("image_processor", settings)["image_mean"] = [0.4, 0.5, 0.5]
        path.write_text(json.dumps(settings), encoding="utf-8")
    assert not is_hit()


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_length", "500"],
        ["--system_prompt", "Be brief."],
        ["--system_prompt", "Be brief. " * 30],
        ["--max_image_pixels", "1000"],
        ["--max_train_samples", "4"],
        ["--validation_fraction", "0"],
        ["--split_seed", "1"],
    ],
)
def test_changed_flag(flags: list[str], is_hit: Callable[..., bool]) -> None:
    assert [is_hit(), is_hit(*flags), is_hit(*flags)] == [False, False, True]


def test_epochs_count_where_each_draws_anew(tmp_path: Path, data: Path, is_hit: Callable[..., bool]) -> None:
    page = {"lines": [{"text": "Dear Ann,", "bbox": [2, 2, 18, 10]}]}
    folder = tmp_path / "pages"
    shutil.copytree(data / "a", folder)
    write_jsonl(folder / "train.jsonl", [{"image": f"{row}.png", "text": page} for row in range(6)])
    epochs = [("--num_train_epochs", number) for number in ("2", "3", "3")]
    assert [is_hit(*words, dataset=folder) for words in epochs] == [False, False, True]
    assert [is_hit(*words, dataset=folder) for words in (("--tasks", "detection"), ("--max_steps", "4"))] == [False] * 2
    assert [is_hit(*words) for words in epochs] == [False, True, True], "the control: these rows stay as they are"


def test_bad_row_that_was_put_right_and_one_that_was_not(data: Path, is_hit: Callable[..., bool]) -> None:
    picture = data / "a" / "2.png"
    content = picture.read_bytes()
    picture.write_text("no image", encoding="utf-8")
    assert [is_hit(), is_hit()] == [False, True], "the same row is bad for the same reason"
    picture.write_bytes(content)
    assert not is_hit()


def test_images_behind_urls_count_by_what_is_kept_of_them(tmp_path: Path, is_hit: Callable[..., bool]) -> None:
    urls = [Url(text=f"https://pictures.invalid/{row}.png") for row in range(3)]

    def fetched(color: int) -> None:
        for url in urls:
            keep(url, encode_png(Image.new("RGB", (20, 20), (color, 0, 0))))

    fetched(10)
    rows = [{"image": url.text, "question": "What?", "answer": "red"} for url in urls]
    folder = write_jsonl(tmp_path / "linked" / "train.jsonl", rows).parent
    words = ("--allow_urls", "true", "--validation_fraction", "0")
    assert [is_hit(*words, dataset=folder), is_hit(*words, dataset=folder)] == [False, True], "nothing is gone"
    shutil.rmtree(kept_file(urls[0]).parent)
    fetched(200)
    assert [is_hit(*words, dataset=folder), is_hit(*words, dataset=folder)] == [False, True]
    kept_file(urls[1]).unlink()
    assert not is_hit(*words, dataset=folder), "it cannot be fetched here, which the check must find"
    assert "1 of 3 rows cannot be used" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", [0, 15, 50, -1])
def test_broken_file_of_the_cache(size: int, tmp_path: Path, is_hit: Callable[..., bool]) -> None:
    assert not is_hit()
    [kept] = (tmp_path / "cache" / "checks").iterdir()
    kept.write_bytes(kept.read_bytes()[:size])
    assert not is_hit()
    assert "the rows are read again" in (tmp_path / "log").read_text(encoding="utf-8")
    assert is_hit()


def test_folder_that_cannot_be_written(tmp_path: Path, is_hit: Callable[..., bool]) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    assert not is_hit()
    assert "could not be kept" in (tmp_path / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("write", [write_chartqa_folder, save_chartqa_to_disk])
def test_rows_that_hold_their_images(write: Callable[..., Path], tmp_path: Path, is_hit: Callable[..., bool]) -> None:
    folder = write(tmp_path / "charts", train=8, val=0, test=0, seed=1)
    assert [is_hit(dataset=folder), is_hit(dataset=folder)] == [False, True]
    shutil.rmtree(folder)
    write(folder, train=8, val=0, test=0, seed=2)
    assert not is_hit(dataset=folder)


def test_images_of_other_sizes_are_another_table_and_that_is_said(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path, is_hit: Callable[..., bool]
) -> None:
    """Where images vary in tokens, planned shapes bring them to a few sizes."""
    for row in range(6):
        Image.new("RGB", (60 + 30 * row, 60)).save(data / "a" / f"{row}.png")
    qwen, shapes = model_folder("qwen2_5_vl"), ("--static_shapes", "true")
    assert [is_hit(model=qwen), is_hit(*shapes, model=qwen)] == [False, False]
    assert "checked before with images as they are" in (tmp_path / "log").read_text(encoding="utf-8")
    assert [is_hit(*shapes, model=qwen), is_hit(model=qwen)] == [True, True]
    Image.new("RGB", (60, 61)).save(data / "a" / "3.png")
    assert not is_hit(*shapes, model=qwen)
    assert [is_hit(), is_hit(*shapes)] == [False, True], "the control: every image of Gemma 3 takes the same tokens"
