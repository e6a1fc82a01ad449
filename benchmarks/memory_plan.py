"""The memory plan against measured peaks: real training steps of random models, each in a process of its own.

    python benchmarks/memory_plan.py [--size tiny mid] [--only NAME ...] [--folder DIR] [--json FILE]

For each setting the plan is made by `vlm_lora.pipeline.plan` from a folder without weights, in one process; in another
one `vlm_lora.pipeline.train` takes three steps with the same flags. What is measured:

- on a CPU: every allocation and release that PyTorch's CPU allocator reports to its profiler, from the first step on,
  added to the bytes of weights and buffers. It is exact and repeats to the byte; the resident set, shown next to it,
  also holds Python, libraries and what malloc keeps.
- on a GPU: `torch.cuda.max_memory_allocated()` of the whole training, the same counting by the CUDA allocator.

Both are compared with the plan's total without the fixed overhead. On a GPU add `--size large`: models of 1 to 3
billion weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "backends"), str(ROOT / "tests")]

PICTURE = 224
QUESTION_WORDS, ANSWER_WORDS = 60, 12

SIZES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tiny": {
        "text": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 4096},
        "vision": {"hidden_size": 64, "intermediate_size": 192, "layers": 3},
    },
    "mid": {
        "text": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 12, "vocab_size": 32000},
        "vision": {"hidden_size": 512, "intermediate_size": 1536, "layers": 8},
    },
    "large": {
        "text": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 128000},
        "vision": {"hidden_size": 1152, "intermediate_size": 4304, "layers": 27},
    },
}
FULL = {"peft_method": "none"}
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "gemma3 LoRA": ("gemma3", {"per_device_train_batch_size": 1}),
    "gemma3 LoRA, batch 4": ("gemma3", {"per_device_train_batch_size": 4}),
    "gemma3 LoRA, batch 4, checkpointing": (
        "gemma3",
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    ),
    "gemma3 full, frozen tower": ("gemma3", {**FULL, "per_device_train_batch_size": 4}),
    "gemma3 full, trained tower": ("gemma3", {**FULL, "per_device_train_batch_size": 4, "freeze_vision": False}),
    "qwen2_5_vl LoRA, batch 4": ("qwen2_5_vl", {"per_device_train_batch_size": 4}),
    "qwen2_5_vl LoRA on all parts": ("qwen2_5_vl", {"per_device_train_batch_size": 4, "lora_targets": "all"}),
    "qwen2_5_vl full, checkpointing": (
        "qwen2_5_vl",
        {**FULL, "per_device_train_batch_size": 4, "gradient_checkpointing": True},
    ),
    "qwen2_5_vl LoRA, eager attention": (
        "qwen2_5_vl",
        {"per_device_train_batch_size": 4, "attn_implementation": "eager"},
    ),
    "llava LoRA, bf16": ("llava", {"per_device_train_batch_size": 4, "bf16": True}),
    "llava LoRA, batch 4, checkpointing": (
        "llava",
        {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
    ),
    "llava full, 2 micro-batches": (
        "llava",
        {**FULL, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ),
    "llava full, adamw_torch": ("llava", {**FULL, "per_device_train_batch_size": 1, "optim": "adamw_torch"}),
    "llava full, bf16, sgd": ("llava", {**FULL, "per_device_train_batch_size": 2, "bf16": True, "optim": "sgd"}),
}
"""By name: the family, and flags."""


def build_configuration(family: str, size: str, tokenizer: Any) -> Any:
    """Return a configuration of a family's real architecture at one of `SIZES`."""
    from support.tiny.configurations import CONFIGURATIONS

    config = CONFIGURATIONS[family](tokenizer)
    text, vision = config.text_config, config.vision_config
    heads = SIZES[size]["text"]["hidden_size"] // 64
    for name, value in {**SIZES[size]["text"], "num_attention_heads": heads, "head_dim": 64}.items():
        setattr(text, name, value)
    text.num_key_value_heads = max(1, heads // 2)
    if getattr(text, "layer_types", None):
        text.layer_types = [
            "sliding_attention" if family == "gemma3" and layer % 6 != 5 else "full_attention"
            for layer in range(text.num_hidden_layers)
        ]
    wanted = SIZES[size]["vision"]
    vision.hidden_size, vision.intermediate_size = wanted["hidden_size"], wanted["intermediate_size"]
    setattr(vision, "depth" if family.startswith("qwen") else "num_hidden_layers", wanted["layers"])
    vision.num_heads = vision.num_attention_heads = wanted["hidden_size"] // 64
    if family.startswith("qwen"):
        vision.out_hidden_size = text.hidden_size
        vision.fullatt_block_indexes = [wanted["layers"] - 1]
        sections = {"type": "mrope", "rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4}
        text.rope_scaling = text.rope_parameters = sections
    else:
        vision.image_size, vision.patch_size = PICTURE, 14 if family == "gemma3" else 16
    return config


def build_folders(family: str, size: str, place: Path) -> tuple[Path, Path]:
    """Write a folder with weights and one without; return both."""
    import torch

    from support.tiny import build_processor
    from support.tiny.folders import model_class, save_processor

    whole, bare = place / f"{family}-{size}", place / f"{family}-{size}-bare"
    if whole.exists():
        return whole, bare
    processor = build_processor(family)
    images = processor.image_processor
    if family == "gemma3":
        images.size = {"height": PICTURE, "width": PICTURE}
    elif family == "llava":
        images.size, images.crop_size = {"shortest_edge": PICTURE}, {"height": PICTURE, "width": PICTURE}
        processor.patch_size = 16
    else:
        images.max_pixels = images.size["longest_edge"] = PICTURE * PICTURE
    torch.manual_seed(0)
    model = model_class(config := build_configuration(family, size, processor.tokenizer)).from_config(config)
    model.save_pretrained(whole)
    save_processor(processor, whole)
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    return whole, bare


def write_data(place: Path) -> Path:
    """Write rows that are all of one length."""
    import numpy as np
    from PIL import Image

    folder = place / "data"
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = []
    for row in range(24):
        name = f"{row}.png"
        Image.fromarray(generator.integers(0, 256, (PICTURE, PICTURE, 3), dtype=np.uint8)).save(folder / name)
        words = {"question": " ".join(["red"] * QUESTION_WORDS), "answer": " ".join(["blue"] * ANSWER_WORDS)}
        lines.append(json.dumps({"image": name, **words}))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def run_of(model: Path, data: Path, output: Path, flags: Mapping[str, Any]) -> Any:
    """Return the RunConfig of a setting, as the command line would make it."""
    from vlm_lora.config.sources import parse

    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "validation_fraction": 0,
        "output_dir": output,
        "do_train": True,
        "max_steps": 3,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "log_level": "error",
        **flags,
    }
    return parse([text for name, value in values.items() for text in (f"--{name}", str(value))], environ={})


def predict(run: Any) -> dict[str, Any]:
    """Return the plan's items for the device of this machine."""
    from vlm_lora import pipeline
    from vlm_lora.memory.request import PlanRequest

    plan = pipeline.plan(run, PlanRequest()).verdicts[0].plan
    return {"items": dict(plan.items), "predicted": plan.of_the_run}


def measure(run: Any) -> dict[str, Any]:
    """Train for three steps and return the peak in bytes."""
    import resource

    from support.peaks import watch_training
    from vlm_lora import pipeline
    from vlm_lora.training import trainer

    found: dict[str, Any] = {}
    trainer.build_trainer = watch_training(trainer.build_trainer, found)
    pipeline.train(run)
    found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def child(task: str) -> None:
    """Do one setting's half in this process and print the figures as JSON."""
    wanted = json.loads(task)
    run = run_of(Path(wanted["model"]), Path(wanted["data"]), Path(wanted["output"]), wanted["flags"])
    print("RESULT " + json.dumps(predict(run) if wanted["half"] == "plan" else measure(run)))


def in_own_process(**task: Any) -> dict[str, Any]:
    """Run `child` in a new process and return what it found."""
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode != 0 or not lines:
        raise SystemExit(f"{task}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[-1][7:])
    return found


def compare(name: str, size: str, place: Path) -> dict[str, Any]:
    """Plan and measure one setting."""
    family, flags = SETTINGS[name]
    whole, bare = build_folders(family, size, place)
    common = {"data": str(write_data(place)), "output": str(place / "out"), "flags": flags}
    planned = in_own_process(half="plan", model=str(bare), **common)
    shutil.rmtree(place / "out", ignore_errors=True)
    found = in_own_process(half="measure", model=str(whole), **common)
    return {"setting": name, "size": size, **planned, **found}


def main() -> None:
    """Compare all settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["tiny", "mid"])
    parser.add_argument("--only", nargs="+", help="settings whose name begins with one of these")
    parser.add_argument("--folder", type=Path, help="where to build models (a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.child:
        child(own.child)
        return
    place = own.folder or Path(tempfile.mkdtemp(prefix="memory_plan_"))
    rows = []
    print("| Setting | Size | Parameters | Plan, MiB | Measured, MiB | Plan / measured | Resident set, MiB |")
    print("|---|---|---|---|---|---|---|")
    for size in own.size:
        for name in SETTINGS:
            if own.only and not name.startswith(tuple(own.only)):
                continue
            row = compare(name, size, place)
            rows.append(row)
            share = row["predicted"] / row["measured"]
            print(
                f"| {name} | {size} | {row['parameters'] / 1e6:.1f} M | {row['predicted'] / 2**20:.1f} "
                f"| {row['measured'] / 2**20:.1f} | {share:.3f} | {row['resident'] / 2**20:.0f} |",
                flush=True,
            )
    if own.json:
        own.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    if own.folder is None:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
