"""The commands of other tools' users with their DeepSpeed configurations, on two processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_uneven_rows
from support.stacks import MAIN, ROOT, recorded
from vlm_lora.training.checkpoints.saving import saved_shapes

TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
QUIET = "--use_cpu --dataloader_num_workers 0 --disable_tqdm --log_level error --logging_steps 1 --save_strategy no"


@pytest.mark.xdist_group("engines")
def test_full_weights_and_lora(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=8, validation=3)
    commands = {
        # The OCR tool: full weights, tower included, a DeepSpeed file.
        "ocr": f"--model-name {model_folder('qwen2_5_vl')} --train-vision --epochs 1 --batch-size 2 --grad-accum 1 "
        f"--bf16 --learning-rate 1e-5 --warmup-steps 1 --seed 7 --no-eval --peft-method none "
        f"--deepspeed-config {ROOT}/launchers/deepspeed/zero3.json",
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
