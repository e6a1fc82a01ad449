"""OCR pages through a whole run: tasks change by epoch, and nothing else changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.datasets import write_image, write_jsonl
from support.runs import logged, run
from vlm_lora.data.dataset import ConversationDataset

FLAGS = {
    "do_train": True,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "save_strategy": "epoch",
    "validation_fraction": 0,
    "max_length": 2048,
}
TASKS = Path(__file__).parents[2] / "examples" / "ocr_tasks.csv"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    rows = []
    for number in range(4):
        write_image(folder / f"{number}.png", seed=number, size=(48, 40))
        lines = [{"text": f"line {n} of {number}", "bbox": [2, 10 * n, 40, 10 * n + 8]} for n in range(1, 3)]
        rows.append({"image": f"{number}.png", "text": {"lines": lines, "paragraphs": lines[:1]}})
    return write_jsonl(folder / "train.jsonl", rows)


def losses(model: Path, pages: Path, output: Path, **flags: object) -> list[float]:
    run(model, pages, output, **{**FLAGS, "task_file": TASKS, **flags})
    return logged(output, "loss")


def test_tasks_are_the_same_with_workers_and_after_a_resume(
    model_folder: Callable[[str], Path], pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder("gemma3")
    whole = losses(model, pages, tmp_path / "whole")
    assert len(whole) == 6
    workers = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    assert losses(model, pages, tmp_path / "workers", **workers) == whole
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    assert losses(model, pages, tmp_path / "resumed", resume_from_checkpoint=checkpoint) == whole
    # The control: the same run with other tasks has other losses, and from its first step on.
    other = losses(model, pages, tmp_path / "other", task_seed=7, num_train_epochs=1)
    assert len(other) == 2
    assert other[0] != whole[0]
    # And where no epoch reaches the rows, the first epoch is the same and the next is not.
    monkeypatch.setattr(ConversationDataset, "varies", False)
    stale = losses(model, pages, tmp_path / "stale", num_train_epochs=3)
    assert stale[:2] == whole[:2]
    assert stale[2:] != whole[2:]


def test_a_mixture_draws_other_rows_each_epoch_and_resumes(
    model_folder: Callable[[str], Path], pages: Path, tmp_path: Path
) -> None:
    """Pictured pages and rows of text alone, with a fraction of the latter."""
    model = model_folder("gemma3")
    chats = [{"query": f"question {n}", "label": f"answer {n}"} for n in range(8)]
    text = write_jsonl(tmp_path / "text" / "train.jsonl", chats)
    flags = {"dataset_name": f"{pages} + {text}", "dataset_weights": "[1, 0.5]"}
    whole = losses(model, pages, tmp_path / "whole", **flags)
    assert len(whole) == 12
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed = losses(model, pages, tmp_path / "resumed", **flags, resume_from_checkpoint=checkpoint)
    assert resumed == whole
    # The control: other rows of the fraction, from the first step on.
    other = losses(model, pages, tmp_path / "other", **flags, split_seed=7, num_train_epochs=1)
    assert other != whole[:4]


def test_planned_shapes_repeat_the_first_epoch_and_say_so(
    model_folder: Callable[[str], Path], pages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that was planned for one task would not fit another."""
    flags = {"static_shapes": True, "log_level": "info", "learning_rate": 0, "lora_dropout": 0}
    found = losses(model_folder("gemma3"), pages, tmp_path / "out", **flags)
    assert "every epoch repeats what it drew" in capsys.readouterr().err
    first, *others = (sorted(found[n : n + 2]) for n in (0, 2, 4))
    # Nothing is learnt at rate 0, so an epoch's losses tell which tasks it read.
    assert all(sum(other) == pytest.approx(sum(first), rel=0.2) for other in others)
