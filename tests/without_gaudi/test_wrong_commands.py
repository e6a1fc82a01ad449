"""What users get wrong: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from support.rows import write_uneven_rows
from support.runs import script_flags
from vlm_lora.cli.main import main, run_script

Rows = list[dict[str, object]]
GOOD: dict[str, object] = {"image": "a.png", "question": "What?", "answer": "Red."}


def write_rows(folder: Path, rows: Rows) -> Path:
    """Write a folder with train.jsonl and a small image `a.png`."""
    folder.mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


WRONG_DATA: dict[str, tuple[Rows, tuple[str, ...]]] = {
    "empty data": ([], ("empty",)),
    "no answer column": ([{"image": "a.png", "colour": "red"}], ("colour", "--prompt_column")),
    "two image columns": ([{**GOOD, "picture": "a.png"}], ("image", "picture", "--image_column")),
    "no assistant turn": (
        [{"image": "a.png", "messages": [{"role": "user", "content": "What?"}]}],
        ("assistant", "row 0"),
    ),
    "unknown role": (
        [
            {
                "image": "a.png",
                "messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}],
            }
        ],
        ("robot", "row 0"),
    ),
    "missing image": ([{**GOOD, "image": "none.png"}], ("none.png", "row 0")),
    "corrupt image": ([{**GOOD, "image": "broken.png"}], ("broken.png",)),
    "image outside the folder": ([{**GOOD, "image": "../../outside.png"}], ("--image_root",)),
    "no answer": ([{**GOOD, "answer": None}], ("answer", "row 0")),
    "too many placeholders": (
        [
            {
                "images": ["a.png"],
                "conversations": [
                    {"from": "human", "value": "<image> <image> What?"},
                    {"from": "gpt", "value": "Red."},
                ],
            }
        ],
        ("<image>", "row 0"),
    ),
}


@pytest.mark.parametrize("name", WRONG_DATA)
def test_wrong_data(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, expected = WRONG_DATA[name]
    data = write_rows(tmp_path / "data", rows)
    check_refusal(
        lambda: run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_steps=1)),
        expected,
        capsys,
    )


WRONG_FLAGS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "unknown flag": ({"learnin_rate": 1e-3}, ("learnin_rate", "learning_rate")),
    "unknown column": ({"image_column": "imgae"}, ("imgae", "image")),
    "missing data": ({"dataset_name": "no/such/folder/train.jsonl"}, ("no/such/folder",)),
    "missing model folder": ({"model_name_or_path": "./no_such_model"}, ("no_such_model",)),
    "model folder without a model": ({"model_name_or_path": "DATA"}, ("config.json",)),
    "too long row": ({"max_length": 5}, ("train.jsonl row ", "max_length")),
    "rank 0": ({"lora_rank": 0}, ("--lora_rank 0", "1 or more")),
    "rank not a number": ({"lora_rank": "many"}, ("lora_rank", "many")),
    "fp16 on the CPU": ({"fp16": True}, ("--fp16", "CUDA")),
    "bf16 and fp16": ({"fp16": True, "bf16": True}, ("--fp16", "--bf16")),
    "targets that match nothing": ({"lora_targets": "no_such_proj"}, ("no_such_proj",)),
    "unknown backend": ({"backend": "tpu"}, ("tpu", "cpu")),
    "not a boolean": ({"do_eval": "perhaps"}, ("do_eval", "perhaps")),
    "unknown method": ({"peft_method": "prefix"}, ("prefix", "lora")),
    "missing configuration file": ({"config": "no.yaml"}, ("no.yaml",)),
    "flash attention on the CPU": (
        {"attn_implementation": "flash_attention_2"},
        ("flash_attention_2", "CPU"),
    ),
    "Gaudi key without Gaudi": ({"use_lazy_mode": True}, ("use_lazy_mode", "--use_habana")),
    "no checkpoint to go on from": ({"resume_from_checkpoint": "no/such"}, ("no/such", "no such folder")),
    "negative seed": ({"seed": -1}, ("--seed -1", "0 or more")),
    "best model by an unknown metric": ({"metric_for_best_model": "accuracy"}, ("accuracy", "perplexity")),
    "batch size 0": ({"per_device_train_batch_size": 0}, ("per_device_train_batch_size 0", "1 or more")),
    "negative learning rate": ({"learning_rate": -1}, ("learning_rate", "-1")),
    "optimizer that is not installed": ({"optim": "schedule_free_adamw"}, ("schedule_free_adamw",)),
    "schedule without its settings": ({"lr_scheduler_type": "cosine_with_min_lr"}, ("cosine_with_min_lr", "min_lr")),
    "FSDP on one CPU process": ({"fsdp": "full_shard"}, ("fsdp",)),
    "freezing with LoRA": ({"freeze_vision": False}, ("--peft_method none", "--lora_targets")),
    "means of ranks": ({"average_tokens_across_devices": False}, ("average_tokens_across_devices",)),
    "label smoothing": ({"label_smoothing_factor": 0.1}, ("label_smoothing_factor", "0.1")),
    "another model type": ({"model_type": "llava"}, ("llava", "gemma3")),
    "held-out share above one": ({"validation_fraction": 1.5}, ("validation_fraction", "1.5")),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_wrong_flag(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, expected = WRONG_FLAGS[name]
    data = write_rows(tmp_path / "data", [GOOD, GOOD])
    flags = {key: data if value == "DATA" else value for key, value in changes.items()}
    command = script_flags(
        model_folder("gemma3"), data, tmp_path / "out", **{"do_train": True, "max_steps": 1, **flags}
    )
    check_refusal(lambda: run_script(command), expected, capsys)


def test_nothing_to_do(model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = script_flags(model_folder("gemma3"), write_uneven_rows(tmp_path / "d", rows=2), tmp_path / "out")
    check_refusal(lambda: run_script(command), ("--do_train", "--do_eval"), capsys)


def test_output_folder_of_another_run_is_kept(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "trainer_state.json").write_text("{}", encoding="utf-8")
    data = write_uneven_rows(tmp_path / "data", rows=2)
    command = script_flags(model_folder("gemma3"), data, output, do_train=True, max_steps=1)
    check_refusal(lambda: run_script(command), ("trainer_state.json", "--overwrite_output_dir"), capsys)
    assert (output / "trainer_state.json").read_text(encoding="utf-8") == "{}"


def test_a_readme_that_is_no_model_card_is_kept(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "README.md").write_text("# My project", encoding="utf-8")
    data = write_uneven_rows(tmp_path / "data", rows=2)
    command = script_flags(model_folder("gemma3"), data, output, do_train=True, max_steps=1, overwrite_output_dir=True)
    check_refusal(lambda: run_script(command), ("README.md",), capsys)
    assert (output / "README.md").read_text(encoding="utf-8") == "# My project"


def test_resuming_with_another_rank_names_both(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=4, validation=1)
    flags = {"do_train": True, "save_strategy": "steps", "save_steps": 1}
    first = script_flags(model_folder("gemma3"), data, tmp_path / "out", **flags, max_steps=1, lora_rank=4)
    assert run_script(first) == 0
    capsys.readouterr()
    second = script_flags(
        model_folder("gemma3"), data, tmp_path / "out", **flags, max_steps=2, lora_rank=8, resume_from_checkpoint=True
    )
    check_refusal(lambda: run_script(second), ("--lora_rank 4 in the checkpoint, 8 now",), capsys)


def test_training_into_the_models_own_folder(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder("gemma3")
    command = script_flags(model, write_uneven_rows(tmp_path / "d", rows=2), model, do_train=True)
    check_refusal(lambda: run_script(command), ("the model's own folder",), capsys)


def test_cut_off_weights(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder("gemma3"), model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    check_refusal(
        lambda: main(["ask", "--model_name_or_path", str(model), "--prompt", "Hi", "--use_cpu"]), ("cut off",), capsys
    )


def test_asking_about_a_link(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ask", "--model_name_or_path", "x", "--prompt", "Hi", "--image", "a.png", "https://x.org/b.png"]
    check_refusal(lambda: main(command), ("https://x.org/b.png", "URLs"), capsys)


def test_error_in_a_loader_worker_is_as_short(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first row is good, so the fault is met in a worker process during training."""
    data = write_rows(tmp_path / "data", [GOOD, {**GOOD, "image": "broken.png"}, GOOD, GOOD])
    command = script_flags(
        model_folder("gemma3"),
        data,
        tmp_path / "out",
        do_train=True,
        num_train_epochs=1,
        dataloader_num_workers=1,
        validation_fraction=0,
    )
    check_refusal(lambda: run_script(command), ("broken.png",), capsys)


def test_unknown_verb_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err


def test_what_the_launcher_cannot_start_is_named_with_the_nearest_verb(capsys: pytest.CaptureFixture[str]) -> None:
    said = ("tran is no script here and no verb (train, ", "Did you mean 'train'?")
    check_refusal(lambda: main(["launch", "--world_size", "2", "tran", "--config", "a.yaml"]), said, capsys)


def test_ask_without_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    check_refusal(lambda: main(["ask", "--model_name_or_path", "x"]), ("--prompt",), capsys)


def test_debug_shows_the_traceback(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = script_flags(model_folder("gemma3"), tmp_path / "none", tmp_path / "out", do_train=True)
    assert run_script([*command, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def check_refusal(command: Callable[[], int], expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """The command exits with 1 and prints one message that holds every expected word."""
    code = command()
    printed = capsys.readouterr()
    assert code == 1, printed.err
    assert "Traceback" not in printed.err + printed.out
    messages = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, printed.err
    for word in expected:
        assert word in printed.err, printed.err
