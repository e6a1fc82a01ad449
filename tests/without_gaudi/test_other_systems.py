"""The commands and files of other tools' users, as they type them, on tiny folders and one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.datasets import write_chartqa_folder, write_image, write_jsonl
from support.registry import stand_in_store
from support.rows import write_uneven_rows
from support.runs import capture_trainer, results_of
from vlm_lora.cli.main import main
from vlm_lora.model.parts import find_parts

ON_CPU = ["--use_cpu", "--dataloader_num_workers", "0", "--disable_tqdm", "--log_level", "info"]


def trained_parts(model: Any) -> set[str]:
    parts = find_parts(model)
    return {parts.part_of(name) for name, p in model.named_parameters() if p.requires_grad}


def test_full_weights_by_the_ocr_tools_flags(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That tool tunes full weights, and leaves embeddings and head frozen: its switch for the tower stands for it."""
    trainers = capture_trainer(monkeypatch)
    data = write_uneven_rows(tmp_path / "data", rows=5, validation=1)
    command = (
        f"train --model-name {model_folder('qwen2_5_vl')} --dataset-name {data} --train-vision --epochs 1 "
        f"--batch-size 2 --grad-accum 2 --output-dir {tmp_path}/out --seed 7 --bf16 --learning-rate 1e-5 "
        "--warmup-steps 1 --no-eval --num-workers 0 --persistent-workers False --prefetch-factor 0 --max-length 400"
    )
    assert main([*command.split(), *ON_CPU]) == 0
    assert trained_parts(trainers[0].model) == {"language", "vision", "projector"}
    arguments = trainers[0].args
    assert (arguments.train_batch_size, arguments.gradient_accumulation_steps, arguments.warmup_steps) == (2, 2, 1)
    assert arguments.bf16
    assert "eval_loss" not in results_of(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_train_vision_next_to_lora_says_what_to_type(
    model_folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=2)
    command = f"train --model-name {model_folder('qwen2_5_vl')} --dataset-name {data} --output-dir {tmp_path}/out"
    assert main([*command.split(), "--train-vision", "--lora_rank", "8", *ON_CPU]) == 1
    assert "--peft_method none" in capsys.readouterr().err


def write_messages(folder: Path) -> Path:
    """OpenAI-style messages in one column, a list of images in the other."""
    rows = []
    for number in range(4):
        write_image(folder / f"{number}.png", seed=number)
        question = [{"type": "image"}, {"type": "text", "text": "Which colour is the tallest bar?"}]
        answer = [{"type": "text", "text": "red"}] if number % 2 else "green"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "images": [f"{number}.png"]})
    return write_jsonl(folder / "train.jsonl", rows)


def config_driven(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Every key that the config-driven tool's files have, `accelerate_launch_args` included."""
    return {
        "model_name_or_path": str(model),
        "training_data_path": str(data),
        "validation_data_path": str(data),
        "dataset_text_field": "messages",
        "dataset_image_field": "images",
        "output_dir": str(output),
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-4,
        "bf16": True,
        "torch_dtype": "bfloat16",
        "use_flash_attn": False,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "accelerate_launch_args": {"fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer", "num_processes": 1},
        "peft_method": "lora",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "packing": False,
        "enable_reduce_loss_sum": False,
        "do_dataprocessing_only": False,
        "bias": "none",
        "modules_to_save": [],
        "embedding_size_multiple_of": 1,
        "tokenizer_name_or_path": str(model),
        "save_model_dir": str(output),
        "trackers": ["file_logger"],
        "use_cpu": True,
        **changes,
    }


@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("name", ["llava", "llava_next-granite", "mllama"])
def test_lora_by_the_config_driven_tools_file(
    name: str,
    by_variable: bool,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainers = capture_trainer(monkeypatch)
    data = write_messages(tmp_path / "data")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_driven(model_folder(name), data, tmp_path / "out")))
    if by_variable:
        monkeypatch.setenv("SFT_TRAINER_CONFIG_JSON_PATH", str(file))
    assert main(["train"] if by_variable else ["train", "--config", str(file)]) == 0
    model = trainers[0].model
    settings = model.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (8, 16, 0.05)
    adapted = {n.rpartition(".lora_A")[0].rpartition(".")[2] for n, _ in model.named_parameters() if ".lora_A" in n}
    assert adapted == {"q_proj", "v_proj"}
    assert trained_parts(model) == {"language"}
    assert model.is_gradient_checkpointing
    assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16", "torch.float32"}
    assert results_of(tmp_path / "out")["eval_samples"] == 4


def test_full_weights_by_the_same_file(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    data = write_messages(tmp_path / "data")
    lora = ("r", "lora_alpha", "lora_dropout", "target_modules")
    settings = config_driven(model_folder("llava"), data, tmp_path / "out", peft_method="none", torch_dtype="float32")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in settings.items() if key not in lora}))
    assert main(["train", "--config", str(file)]) == 0
    assert trained_parts(trainers[0].model) == {"language", "projector", "embeddings", "head"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_flash_attn": True}, ("flash_attention_2", "CPU", "--attn_implementation auto")),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, ("use_reentrant", "non-reentrant")),
        ({"dataset_kwargs": {"max_length": 3}}, ("dataset_kwargs", "max_length")),
        ({"dataset_text_field": "text"}, ("text", "messages")),
    ],
)
def test_what_cannot_be_done_is_one_message(
    change: dict[str, Any],
    words: tuple[str, ...],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_messages(tmp_path / "data")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_driven(model_folder("llava"), data, tmp_path / "out", **change)))
    assert main(["train", "--config", str(file)]) == 1
    printed = capsys.readouterr().err
    assert printed.count("error: ") == 1, printed
    for word in words:
        assert word in printed, printed


def test_flash_attention_for_a_model_without_it_falls_back_aloud(
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_messages(tmp_path / "data")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config_driven(model_folder("mllama"), data, tmp_path / "out", use_flash_attn=True)))
    trainers = capture_trainer(monkeypatch)
    assert main(["train", "--config", str(file)]) == 0
    assert "Attention: sdpa instead of flash_attention_2" in capsys.readouterr().err
    assert trainers[0].model.config._attn_implementation == "sdpa"


def test_the_tabular_tools_flags(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers, store = capture_trainer(monkeypatch), stand_in_store(tmp_path / "store", monkeypatch)
    folder = tmp_path / "data"
    lines = ["image_path,prompt,response"]
    for number in range(4):
        write_image(folder / f"{number}.png", seed=number)
        lines.append(f"{number}.png,Which colour is tallest?,red")
    (folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = (
        f"train --dataset_name {folder}/train.csv --output_model_name charts --base_model {model_folder('llava')} "
        "--model_type llava --num_epochs 1 --batch_size 2 --learning_rate 2e-4 --gradient_accumulation_steps 1 "
        "--max_seq_length 500 --lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --use_flash_attention false"
    )
    assert main([*command.split(), "--deepspeed_config", "", "--wandb_project", "", *ON_CPU]) == 0
    settings = trainers[0].model.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (8, 16, 0.05)
    assert (tmp_path / "charts" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "charts" / "trainer_state.json").is_file()
    assert [(one.name, one.version) for one in store.versions] == [("charts", "1")]


def test_boxes_as_answers_with_full_weights(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detection as text: the answer is JSON, trained as it is written."""
    trainers = capture_trainer(monkeypatch)
    folder, rows = tmp_path / "data", []
    for number in range(4):
        write_image(folder / f"{number}.png", seed=number)
        boxes = [{"bbox_2d": [1, 2, 10 + number, 20], "label": "Mask"}]
        rows.append({"image": f"{number}.png", "question": "Find the masks.", "answer": json.dumps(boxes)})
    data = write_jsonl(folder / "train.jsonl", rows)
    command = (
        f"train --model_name_or_path {model_folder('qwen2_5_vl')} --dataset_name {data} --output_dir {tmp_path}/out "
        "--peft_method none --no_freeze_vision --bf16 --gradient_checkpointing --num_train_epochs 1 "
        "--per_device_train_batch_size 2 --learning_rate 1e-5 --weight_decay 0.01 --lr_scheduler_type cosine"
    )
    assert main([*command.split(), *ON_CPU]) == 0
    row = trainers[0].train_dataset[0]
    encoded = trainers[0].data_collator([row])
    supervised = encoded["labels"][0][encoded["labels"][0] >= 0]
    text = trainers[0].processing_class.tokenizer.decode(supervised)
    assert json.loads(text[: text.rindex("]") + 1])[0]["label"] == "Mask"
    assert "vision" in trained_parts(trainers[0].model)


def test_chartqa_as_the_hub_has_it(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_chartqa_folder(tmp_path / "ChartQA", train=4, val=2, test=1, seed=0)
    command = f"train --model_name_or_path {model_folder('gemma3')} --dataset_name {data} --output_dir {tmp_path}/out"
    assert main([*command.split(), "--max_steps", "1", *ON_CPU]) == 0
    assert results_of(tmp_path / "out")["eval_samples"] == 2
