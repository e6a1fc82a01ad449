"""A page that fits as the first epoch asks about it and not as a later one does: found before the run, not in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_image, write_jsonl
from support.runs import run, script_flags
from vlm_lora import pipeline
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import DataConfig
from vlm_lora.data.dataset import load_splits

ROWS, LONG = 4, 1
"""The page with long text is row 1."""
LIMIT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pages that are asked for a short formula or for their text, which is long on one of them."""
    folder = tmp_path_factory.mktemp("pages")
    for number in range(ROWS):
        write_image(folder / f"{number}.png", seed=number, size=(48, 40))
    texts = ["so many words " * 60 if number == LONG else f"page {number}" for number in range(ROWS)]
    pages = [{"text": text, "latex": [{"text": "x", "bbox": [1, 1, 9, 9]}]} for text in texts]
    rows = [{"image": f"{number}.png", "text": page} for number, page in enumerate(pages)]
    write_jsonl(folder / "data" / "train.jsonl", rows)
    tasks = "task,input_type,output_type,question\nformula,image,latex,Formula?\nreading,image,text,Text?\n"
    (folder / "tasks.csv").write_text(tasks, encoding="utf-8")
    return folder


def flags(folder: Path) -> dict[str, object]:
    """Return a run's flags with the first seed whose third epoch, and none before, asks for the long text."""
    given = {"image_root": str(folder), "task_file": str(folder / "tasks.csv"), "validation_fraction": 0.0}
    for seed in range(1000):
        config = DataConfig(dataset_name=str(folder / "data"), task_seed=seed, **given)  # type: ignore[arg-type]
        train = load_splits(config, need_train=True, need_validation=False).train
        assert train is not None
        asked = [train.at(LONG, epoch=epoch).turns[0].text for epoch in range(3)]
        if asked == ["Formula?", "Formula?", "Text?"]:
            return {**given, "task_seed": seed, "max_length": LIMIT, "per_device_train_batch_size": 1}
    pytest.fail("no seed draws that")


@pytest.fixture
def checked(
    folder: Path, model_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return a function that checks with more flags, and returns exit code and error."""
    given = flags(folder)
    own = ["check", "--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(folder / "data")]

    def run_check(*more: str, max_length: int = LIMIT) -> tuple[int, str]:
        values = {**given, "max_length": max_length}
        words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        code = main([*own, "--use_cpu", "--do_eval", "false", *words, *more])
        return code, capsys.readouterr().err

    return run_check


def test_check_reads_the_draws_of_all_epochs(checked: Callable[..., tuple[int, str]]) -> None:
    assert checked("--num_train_epochs", "2")[0] == 0, "the control: no epoch asks for the long text"
    code, said = checked("--num_train_epochs", "3")
    assert code == 1
    assert "train.jsonl row 1 (line 2): When an epoch asks 'Text?': " in said
    assert f"more than the limit of {LIMIT}" in said
    assert "1 of 4 rows cannot be used" in said
    assert checked("--num_train_epochs", "3", "--static_shapes", "true")[0] == 0, "each epoch repeats the first"
    assert checked("--num_train_epochs", "3", max_length=2048)[0] == 0, "it is the length alone"


@pytest.mark.parametrize("words", [("--max_steps", "1"), ("--num_train_epochs", "500")])
def test_check_reads_every_task_where_draws_are_many_or_unknown(
    words: tuple[str, str], checked: Callable[..., tuple[int, str]]
) -> None:
    code, said = checked(*words)
    assert code == 1
    assert "row 1 (line 2): When an epoch asks 'Text?': " in said
    assert checked(*words, "--output_types", "latex")[0] == 0, "the control: no task asks for the text"


@pytest.mark.parametrize("policy", [{"on_overflow": "drop"}, {"on_bad_sample": "skip", "max_bad_fraction": 0.5}])
def test_a_row_is_left_out_of_the_whole_run(
    policy: dict[str, object], folder: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {**flags(folder), "do_train": True, **policy}
    model, data = model_folder("gemma3"), folder / "data"
    kept = run(model, data, tmp_path / "two", **given, num_train_epochs=2)
    assert kept["train_samples"] == ROWS, "the control: two epochs never ask for the long text"
    left = run(model, data, tmp_path / "three", **given, num_train_epochs=3)
    assert left["train_samples"] == ROWS - 1
    report = json.loads((tmp_path / "three" / "data_report.json").read_text(encoding="utf-8"))
    assert [(row["row"], row["kind"]) for row in report["bad"]] == [(LONG, "too long")]


def test_drop_without_the_check_reads_them_too(
    folder: Path, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    given = {**flags(folder), "do_train": True, "on_overflow": "drop", "skip_check": True, "num_train_epochs": 3}
    left = run(model_folder("gemma3"), folder / "data", tmp_path / "out", **given)
    assert left["train_samples"] == ROWS - 1
    listed = json.loads((tmp_path / "out" / "overlong_rows.json").read_text(encoding="utf-8"))
    assert [entry["position"] for entry in listed["train"]] == [LONG]
    assert "When an epoch asks 'Text?': " in listed["train"][0]["reason"]


def test_without_this_the_run_ends_in_its_third_epoch(
    folder: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The control of all the above: the third epoch does ask for the long text."""
    monkeypatch.setattr(pipeline, "sampled_epochs", lambda **settings: 1)
    given = {**flags(folder), "do_train": True, "on_overflow": "drop", "num_train_epochs": 3}
    words = script_flags(model_folder("gemma3"), folder / "data", tmp_path / "out", **given)
    assert run_script(words) == 1
    assert "row 1 (line 2): " in capsys.readouterr().err
