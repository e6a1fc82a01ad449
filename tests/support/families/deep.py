"""More of a type: activation checkpointing, two ranks, 4 bits, the memory plan, the simulated Gaudi card."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support.families.folders import build_folder
from support.families.shapes import shape_of
from support.families.trial import FailedError, write_rows
from support.runs import EXAMPLES, TORCHRUN, script_flags
from support.warm import warmed

TYPES = (
    *("aya_vision", "cohere2_vision", "qwen3_vl_moe", "glm4v", "glm4v_moe", "janus", "llama4", "idefics2", "ovis2"),
    "paddleocr_vl",
)
"""Ten types outside the table of families, of different kinds of towers and decoders."""
ROOT = Path(__file__).parents[3]
HPU = ROOT / ".venv" / "hpu"
CLOSE = 1e-5
"""How far weights of the adapter may be from those of the plain run."""


def try_deeper(model_type: str, folder: Path) -> dict[str, str]:
    """Return what came out of each check: how far its adapter is from the plain run's, `runs`, or what went wrong."""
    shape = shape_of(model_type)
    shutil.rmtree(folder, ignore_errors=True)
    model = build_folder(model_type, folder / "model")
    data = write_rows(folder / "data-deep", text_rows=shape.text_rows)

    def train(name: str, command: list[str], place: str = "", **flags: object) -> dict[str, torch.Tensor]:
        output = folder / name
        settings: dict[str, object] = {"do_train": True, "max_steps": 3, "learning_rate": 1e-2, "lora_dropout": 0}
        settings |= {
            "optim": "sgd",
            "bf16": False,
            "per_device_train_batch_size": 2,
            "train_sampling_strategy": "random",
            **shape.flags,
            **flags,
        }
        words = script_flags(model, data, output, **settings)
        path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH", ""))))
        lazy = {"PT_HPU_LAZY_MODE": "0"} if place else {}
        environment = {**os.environ, **lazy, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        started = warmed([*command, *words], environment)
        done = subprocess.run(started, cwd=EXAMPLES, env=environment, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "rror: " in line]
            raise FailedError(f"exit {done.returncode}: {(errors or ['?'])[-1][:160]}")
        return load_file(output / "adapter_model.safetensors")

    alone = [sys.executable, "run_lora_vlm.py"]
    plain = train("plain", alone)

    def apart(other: dict[str, torch.Tensor], like: dict[str, torch.Tensor] = plain) -> str:
        far = max(float((like[name] - other[name]).abs().max()) for name in like)
        if far > CLOSE:
            raise FailedError(f"adapters differ by {far:.1e}")
        return f"{far:.0e}"

    def on_hpu() -> str:
        # Its batches are of few fixed shapes, so they hold other rows than a CPU's, unless that is asked for the same.
        same = train("static", alone, static_shapes=True)
        return apart(train("hpu", alone, str(HPU), use_cpu=False, backend="gaudi"), same)

    def runs(_: object) -> str:
        return "runs"

    def plan() -> str:
        words = ["plan", "--model_name_or_path", str(model), "--dataset_name", str(data), "--device", "H100-80"]
        started = warmed([sys.executable, "-m", "vlm_lora", *words])
        done = subprocess.run(started, capture_output=True, text=True)
        if done.returncode:
            raise FailedError(f"exit {done.returncode}: {done.stderr.splitlines()[-1][:160]}")
        return "runs"

    checks: dict[str, Callable[[], str]] = {
        "checkpointing": lambda: apart(train("checkpointing", alone, gradient_checkpointing=True)),
        "two ranks": lambda: apart(train("ranks", TORCHRUN, per_device_train_batch_size=1)),
        "4 bits": lambda: runs(train("bits", alone, load_in_4bit=True)),
        "plan": plan,
        "simulated hpu": on_hpu,
    }
    return {name: _tried(check) for name, check in checks.items()}


def _tried(check: Callable[[], Any]) -> str:
    try:
        return str(check())
    except FailedError as error:
        return f"fails: {error}"
