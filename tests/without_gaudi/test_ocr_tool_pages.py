"""The OCR tool's own command lines on generated pages: shard, look, train, list checkpoints, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.tars import TASK_COUNTS, page_members, write_tar, write_task_file
from vlm_lora.cli.main import main

PAGES = 12
EMPTY = 5
QUIET = "--use_cpu --disable_tqdm --log_level error"


def page(number: int) -> list[tuple[str, bytes]]:
    """Return JSON and image of one page in the tool's schema; page 5 has no text, and odd ones a second dot."""
    return page_members(number, empty=number == EMPTY, dotted=number % 2 == 1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training tars and one to evaluate on, cut by the tool's command."""
    folder = tmp_path_factory.mktemp("pages")
    for name, numbers in (("in", range(PAGES)), ("held", range(100, 104))):
        write_tar(folder / f"{name}.tar", [member for number in numbers for member in page(number)])
    sharding = "--img-exts png jpg jpeg --meta-ext json --shuffle --seed 17"
    train = f"shard --input {folder}/in.tar --out-dir {folder}/train --num-shards 2 {sharding}"
    evaluation = (
        f"shard --input {folder}/held.tar --out-dir {folder}/eval --samples-per-shard 4 --prefix eval {sharding}"
    )
    assert main(train.split()) == 0
    assert main(evaluation.split()) == 0
    assert len(list((folder / "train").glob("*.tar"))) == 2
    return folder


def test_train_on_tasks_from_shards(model_folder: Callable[[str], Path], shards: Path, tmp_path: Path) -> None:
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --tar-pattern {shards}/train/train-{{000000..000001}}.tar "
        f"--eval-tar-pattern {shards}/eval/*.tar;{shards}/eval/*.tar --tasks reading localized_reading --output-types "
        "text lines "
        f"--max-length 2048 --epochs 1 --batch-size 2 --grad-accum 1 --output-dir {tmp_path}/out --seed 42 "
        "--learning-rate 1e-4 --warmup-steps 1 --num-workers 1 --persistent-workers --prefetch-factor 2 "
        f"--val-samples-per-epoch 3 --save_steps 3 {QUIET}"
    )
    assert main(command.split()) == 0
    results = json.loads((tmp_path / "out" / "all_results.json").read_text(encoding="utf-8"))
    assert results["train_samples"] == PAGES
    assert results["eval_samples"] == 3
    report = json.loads((tmp_path / "out" / "data_report.json").read_text(encoding="utf-8"))
    assert report["splits"]["train"]["rows"] == PAGES
    assert report["bad"] == []


def test_list_checkpoints_and_begin_anew_with_the_weights_of_one(
    model_folder: Callable[[str], Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --tar-pattern {shards}/train/*.tar --no-eval --train-vision "
        f"--batch-size 1 --num-workers 0 --persistent-workers False --prefetch-factor 0 {QUIET}"
    ).split()
    assert main([*command, "--output-dir", f"{tmp_path}/out", "--epochs", "1", "--save_steps", "5"]) == 0
    capsys.readouterr()
    assert main(["train", "--list-checkpoints", str(tmp_path / "out")]) == 0
    listed = capsys.readouterr().out
    assert listed.index("checkpoint-5") < listed.index("checkpoint-10"), "by number, not by letters"
    checkpoint = tmp_path / "out" / "checkpoint-10"
    anew = ["--output-dir", f"{tmp_path}/anew", "--resume-from-checkpoint", str(checkpoint), "--load-model-only"]
    assert main([*command, *anew, "--max_steps", "1"]) == 0
    state = json.loads((tmp_path / "anew" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 1
    assert f"model_name_or_path: {checkpoint}" in (tmp_path / "anew" / "run_config.yaml").read_text(encoding="utf-8")


def test_the_tools_task_file_is_read_whole_and_its_combinations_are_counted(
    model_folder: Callable[[str], Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder("qwen2_5_vl")
    capsys.readouterr()
    command = (
        f"check --model-name {model} --tar-pattern {shards}/train/*.tar --no-eval --validation_fraction 0 "
        f"--task-file {write_task_file(tmp_path / 'tasks.csv')} --json --workers 0"
    )
    assert main(command.split()) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["splits"]["train"]["rows"], report["bad"]) == (PAGES, [])
    said = " ".join(report["splits"]["train"]["columns"])
    assert "86 in all, from " in said
    for (name, given, output, _), count in TASK_COUNTS.items():
        assert f"{name} {given} -> {output} ({count})" in said
    assert "the OCR tool's own, because a task file is given" in said


def test_dry_run_without_a_model(
    model_folder: Callable[[str], Path], shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That tool's own does nothing here where there is no GPU."""
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --tar-pattern {shards}/train/*.tar --tasks reading "
        f"--output-types text --dry-run --dry-run-samples 10 --no-model --output-dir {tmp_path}/out {QUIET}"
    )
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    numbers = [number for number in range(PAGES) if f"line 1 of {number}\nline 2 of {number}" in printed]
    assert 8 <= len(numbers) <= 10, "ten pages, of which one may be the empty one"
    assert (tmp_path / "out" / "dry_run.html").is_file()
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
