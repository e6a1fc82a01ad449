"""The commands of other tools' users with their DeepSpeed configurations, on two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.rows import write_uneven_rows
from support.stacks import MAIN, recorded
from support.tars import page_members, write_tar, write_task_file
from vlm_lora.launch.launching import free_port
from vlm_lora.training.checkpoints.saving import saved_shapes

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
QUIET = "--use_cpu --dataloader_num_workers 0 --disable_tqdm --log_level error --logging_steps 1 --save_strategy no"


@pytest.mark.xdist_group("engines")
def test_full_weights_and_lora(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=8, validation=3)
    commands = {
        # Full weights on cards that are too small: everything but the work in host memory. DeepSpeed compiles its own
        # AdamW for minutes, so another optimizer stands in for it.
        "offloaded": f"--model_name_or_path {model_folder('qwen2_5_vl')} --peft_method none --freeze_vision false "
        "--num_train_epochs 1 --per_device_train_batch_size 2 --bf16 --learning_rate 1e-5 --optim sgd "
        "--gradient_checkpointing --deepspeed zero3_offload --do_eval",
        # The tabular workflow: a word for the configuration.
        "tabular": f"--base_model {model_folder('llava')} --model_type llava --num_epochs 1 --batch_size 2 "
        "--learning_rate 1e-4 --gradient_accumulation_steps 1 --max_seq_length 2048 --lora_r 8 --lora_alpha 16 "
        "--lora_dropout 0.0 --use_flash_attention false --deepspeed_config zero2 --do_eval --predict_with_generate "
        "--max_new_tokens 2",
    }
    runs = [
        [
            *command.split(),
            "--dataset_name",
            str(data),
            "--output_dir",
            str(tmp_path / name),
            "--do_train",
            *QUIET.split(),
        ]
        for name, command in commands.items()
    ]
    ranks = recorded(tmp_path / "records", runs, python=MAIN, launcher=TORCHRUN, variables={})
    for number, name in enumerate(commands):
        records = [records[number] for records in ranks]
        assert [record["world_size"] for record in records] == [2, 2]
        assert {record["wrapped"] for record in records} == {"DeepSpeedEngine"}
        assert records[0]["parameters"] == records[1]["parameters"]
        shapes = saved_shapes(tmp_path / name, "*.safetensors")
        assert shapes
        assert all(size for shape in shapes.values() for size in shape), "nothing is empty"
    results: dict[str, Any] = json.loads((tmp_path / "tabular" / "all_results.json").read_text(encoding="utf-8"))
    assert "eval_exact_match" in results
    lines = (tmp_path / "tabular" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(set(losses)) == 3, "each row has its own, whichever process measured it"
    assert min(losses) < results["eval_loss"] < max(losses)


RUN_SCRIPT = (
    "--max-length 3072 --train-vision --batch-size 2 --grad-accum 2 --epochs 1 --learning-rate 1e-6 --bf16 "
    "--num-workers 0 --persistent-workers False --prefetch-factor 0 --deepspeed-config ds_zero3.json "
    "--val-samples-per-epoch 2048"
)
"""As that tool's run script has them; names and paths aside, its batches alone are smaller here."""


@pytest.mark.xdist_group("engines")
def test_the_run_script_of_the_ocr_tool(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Two steps of full weights with ZeRO-3, its two files named as its script names them, in the folder it runs in."""
    model = model_folder("qwen2_5_vl")
    for name, numbers in (("train-0", range(8)), ("train-1", range(8, 16)), ("eval-0", range(100, 103))):
        pages = [page_members(number, empty=number % 8 == 5, dotted=number % 2 == 1) for number in numbers]
        write_tar(tmp_path / f"{name}.tar", [member for page in pages for member in page])
    write_task_file(tmp_path / "tasks.csv")
    (tmp_path / "system_prompt.txt").write_text("You read pages.\n", encoding="utf-8")
    zero = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto"}
    sizes = dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
    (tmp_path / "ds_zero3.json").write_text(json.dumps({**zero, **sizes}), encoding="utf-8")
    (tmp_path / "acc.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\n"
        "deepspeed_config: {deepspeed_config_file: ds_zero3.json, zero3_init_flag: true}\n"
        f"machine_rank: 0\nnum_machines: 1\nnum_processes: 2\nmain_process_port: {free_port()}\n",
        encoding="utf-8",
    )
    words = (
        f"--model-name {model} --tar-pattern train-*.tar --eval-tar-pattern eval-*.tar --output-dir out {RUN_SCRIPT} "
        f"--task-file tasks.csv --system-prompt-file system_prompt.txt --do_train --do_eval {QUIET}"
    )
    ranks = recorded(
        tmp_path / "records",
        [words.split()],
        python=MAIN,
        launcher=["-m", "accelerate.commands.launch", "--config_file", "acc.yaml"],
        variables={"DS_ACCELERATOR": "cpu"},
        cwd=tmp_path,
    )
    (first,), (second,) = ranks
    assert (first["world_size"], first["wrapped"], len(first["steps"])) == (2, "DeepSpeedEngine", 2)
    assert [len(counts) for counts in first["supervised"][:4]] == [2, 2, 2, 2]
    assert first["parameters"] == second["parameters"]
    settings = yaml.safe_load((tmp_path / "out" / "run_config.yaml").read_text(encoding="utf-8"))
    assert settings["system_prompt"] == "You read pages."
    assert {settings[f"freeze_{part}"] for part in ("embeddings", "head")} == {True}
    assert "dataloader_prefetch_factor" not in {key for key, value in settings.items() if value is not None}
    before, after = (saved_shapes(folder, "*.safetensors") for folder in (model, tmp_path / "out"))
    assert sorted(before) == sorted(after)
