"""A model trained on the demo's task, quantized, scored before and after, and damaged on purpose.

`python tests/check_quantize.py FOLDER --environment DIR` prints a report as JSON and ends with 1 where
something is not as it should be. `make check-quantize` makes the environment first. A few minutes on one CPU.

1. A Qwen2.5-VL whose layers have 128 and 384 inputs learns some of the demo's charts with all its weights, then an
   adapter. In so few minutes it learns answers by heart, not to read: exact match is that on the charts it was trained
   on, perplexity that on others.
2. `vlm-lora merge` and `vlm-lora quantize --scheme awq`, and `fp8-dynamic`, of the adapter.
3. `vlm-lora eval` of merged and quantized folders, all in the environment of llm-compressor: perplexity and answers.
4. Controls: AWQ's folder with all steps set to 1, which must score otherwise; the demo's own model, which must be
   refused.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from support.tiny.folders import save_processor
from support.tiny.processors import build_processor
from vlm_lora.demo.charts import write_chart_dataset
from vlm_lora.demo.run import BASE

SIDE = 96
"""Of the demo's images, in pixels."""
TRAINED = 16
"""Charts, of four answers each; few enough to be learned by heart."""
EVALUATED = 100
FULL = {"peft_method": "none", "freeze_vision": False, "learning_rate": 2e-3}
ADAPTER = {"lora_targets": "all", "lora_rank": 8, "learning_rate": 2e-3}


def build_base(folder: Path) -> None:
    """Write a fresh Qwen2.5-VL whose language model can be put into groups of 128."""
    processor = build_processor("qwen2_5_vl")
    processor.image_processor.size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    tokenizer = processor.tokenizer
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {f"vision_{side}_token_id": f"<|vision_{side}|>" for side in ("start", "end")}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": 8,
            "out_hidden_size": 128,
            "window_size": 64,
            "fullatt_block_indexes": [1],
        },
        **{key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()},
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    save_processor(processor, folder)


def call(python: str, *words: object, code: int = 0) -> str:
    """Call vlm-lora, and return what it says; it must end with this code."""
    line = [python, "-m", "vlm_lora", *map(str, words)]
    sys.stderr.write(f"$ {' '.join(line)}\n")
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode != code:
        raise SystemExit(f"exit code {done.returncode} instead of {code}:\n{done.stdout}\n{done.stderr}")
    sys.stderr.write(done.stderr if code else done.stdout)
    return done.stderr if code else done.stdout


def flags(**settings: object) -> list[str]:
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def train(base: Path, data: Path, output: Path, steps: int, **settings: object) -> None:
    shared: dict[str, object] = {"do_eval": False, "per_device_train_batch_size": 8, "lr_scheduler_type": "cosine"}
    shared["image_backend"] = "pil"  # as the demo's
    named = {"model_name_or_path": base, "dataset_name": data, "output_dir": output, "max_steps": steps}
    call(sys.executable, "train", *flags(**shared, **named, **settings, warmup_steps=0.05, use_cpu=True))


def write_known(data: Path, folder: Path) -> None:
    """Write the first question of each row that is trained on, as it stands there; later ones follow answers."""
    folder.mkdir()
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    first = [{**row, "messages": row["messages"][:2]} for row in rows]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in first), encoding="utf-8")


def score(python: str, folder: Path, data: Path, known: Path, output: Path) -> dict[str, float]:
    """Return perplexity on held-out charts, and the share of right answers about charts that were trained on."""
    shared = {"model_name_or_path": folder, "image_root": data, "per_device_eval_batch_size": 25, "use_cpu": True}
    held_out = {"dataset_name": data, "output_dir": output / "held-out"}
    by_heart = {"dataset_name": known, "output_dir": output / "known", "predict_with_generate": True}
    one = json.loads(call(python, "eval", *flags(**shared, **held_out), "--json"))
    other = json.loads(call(python, "eval", *flags(**shared, **by_heart, max_new_tokens=12), "--json"))
    return {"perplexity": one["eval_perplexity"], "exact_match": other["eval_exact_match"]}


def with_steps_of_one(folder: Path, copy: Path) -> None:
    """Write a copy whose quantized numbers stand for themselves."""
    shutil.copytree(folder, copy)
    (copy / "MANIFEST.json").unlink()
    held = load_file(copy / "model.safetensors")
    ones = {name: torch.ones_like(tensor) for name, tensor in held.items() if name.endswith(".weight_scale")}
    save_file({**held, **ones}, copy / "model.safetensors", metadata={"format": "pt"})


def packed(folder: Path) -> dict[str, Any]:
    """Return how many layers of a folder are in words of 4 bits, and of which dtype."""
    held = load_file(folder / "model.safetensors")
    words = {name: tensor for name, tensor in held.items() if name.endswith(".weight_packed")}
    return {"layers": len(words), "dtypes": sorted({str(tensor.dtype) for tensor in words.values()})}


def check(folder: Path, python: str, environment: Path, steps: int) -> dict[str, Any]:
    data, base, full, adapter = (folder / name for name in ("charts", "base", "full", "adapter"))
    known = folder / "known"
    report: dict[str, Any] = {"charts": write_chart_dataset(data, train=TRAINED, validation=EVALUATED, seed=0).train}
    write_known(data, known)
    build_base(base)
    started = time.monotonic()
    train(base, data, full, steps, **FULL)
    train(full, data, adapter, steps // 4, **ADAPTER)
    report["training_seconds"] = round(time.monotonic() - started)
    merged = folder / "merged"
    call(sys.executable, "merge", adapter, *flags(output_dir=merged, use_cpu=True))
    places = {"merged": merged}
    for scheme in ("awq", "fp8-dynamic"):
        places[scheme] = folder / scheme
        asked = flags(scheme=scheme, output_dir=places[scheme], rows=TRAINED, environment=environment, use_cpu=True)
        report[scheme] = json.loads(call(sys.executable, "quantize", adapter, *asked, "--json"))
    places["steps of one"] = folder / "ones"
    with_steps_of_one(places["awq"], places["steps of one"])
    report["packed"] = packed(places["awq"])
    report["scores"] = {
        name: score(python, place, data, known, folder / f"scores-{number}")
        for number, (name, place) in enumerate(places.items())
    }
    refused = call(sys.executable, "quantize", BASE, *flags(scheme="awq", output_dir=folder / "demo"), code=1)
    report["demo"] = refused.strip().splitlines()[-1]
    return report


def faults(report: dict[str, Any]) -> list[str]:
    """Return what is not as it should be."""
    scores = report["scores"]
    before, awq, ones = (scores[name] for name in ("merged", "awq", "steps of one"))
    wanted = {
        "4-bit tensors of all 21 layers": report["packed"] == {"layers": 21, "dtypes": ["torch.int32"]},
        "within half a step": report["awq"]["proof"]["largest_error"] < 0.501,
        "AWQ's scales change nothing by themselves": report["awq"]["proof"]["deviation"] < 1e-3,
        "AWQ changes the perplexity": awq["perplexity"] != before["perplexity"],
        "AWQ keeps it within a tenth": abs(awq["perplexity"] / before["perplexity"] - 1) < 0.1,
        "8-bit floats keep it within a hundredth": abs(scores["fp8-dynamic"]["perplexity"] / before["perplexity"] - 1)
        < 0.01,
        "most of what was trained is answered": before["exact_match"] > 0.5,
        "AWQ answers it as well": awq["exact_match"] > before["exact_match"] - 0.1,
        "steps of one do not": ones["exact_match"] < before["exact_match"] - 0.1,
        "steps of one score otherwise": ones["perplexity"] > 1.2 * before["perplexity"],
        "the demo's model is refused by layer and size": "160 inputs" in report["demo"] and "q_proj" in report["demo"],
    }
    return [name for name, holds in wanted.items() if not holds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for all that is written; a new one")
    parser.add_argument("--environment", type=Path, required=True, help="of llm-compressor, with vlm-lora installed")
    parser.add_argument("--steps", type=int, default=160, help="of training all weights (160)")
    asked = parser.parse_args()
    if asked.folder.exists():
        parser.error(f"{asked.folder} is there already")
    report = check(asked.folder, str(asked.environment / "bin" / "python"), asked.environment, asked.steps)
    report["faults"] = faults(report)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
