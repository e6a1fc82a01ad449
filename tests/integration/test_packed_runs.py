"""Whole runs with --packing: the update of the rows unpacked, resumed bitwise, the same on two processes; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.datasets import write_jsonl
from support.rows import WORDS
from support.runs import TORCHRUN, logged, run, run_processes, script_flags
from vlm_lora.batching.packing.attention import visible
from vlm_lora.cli.main import run_script
from vlm_lora.compat import IS_5

SHAPES = ("gemma3", "qwen2_5_vl", "llava")
PACKED = {"packing": True, "pack_length": 300}
NO_FULL_STEP = {"dataloader_drop_last": True, "per_device_train_batch_size": 60}
WHOLE_EPOCH = {
    "do_train": True,
    "max_steps": 1,
    "max_grad_norm": 1e9,
    "validation_fraction": 0,
    "static_shapes": False,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows with none, one and two images, and texts of very different length."""
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    lines = []
    for row in range(9):
        names = [f"{row}-{number}.png" for number in range(row % 3)]
        for name in names:
            sides = generator.integers(28, 90, 2)
            Image.fromarray(generator.integers(0, 256, (*sides, 3), dtype=np.uint8)).save(folder / name)
        question, answer = (" ".join(generator.choice(WORDS, size=generator.integers(1, n))) for n in (30, 9))
        lines.append({"images": names, "question": question, "answer": answer})
    write_jsonl(folder / "train.jsonl", lines)
    return folder


def update(model: Path, data: Path, output: Path, **flags: object) -> tuple[float, float]:
    """The loss and the norm of the gradient of one update over the whole epoch."""
    results = run(model, data, output, **{**WHOLE_EPOCH, **flags})
    return results["train_loss"], logged(output, "grad_norm")[0]


def test_packs_with_full_weights_give_the_update_of_the_rows(
    model_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    model, full = model_folder("llava"), {"peft_method": "none"}
    alone = update(model, rows, tmp_path / "alone", per_device_train_batch_size=9, **full)
    packed = update(model, rows, tmp_path / "packs", per_device_train_batch_size=20, **PACKED, **full)
    assert packed == pytest.approx(alone, rel=1e-5)
    lora = update(model, rows, tmp_path / "lora", per_device_train_batch_size=20, **PACKED)
    assert lora[1] != pytest.approx(alone[1], rel=1e-3), "adapters alone have another gradient"


def test_accumulated_packs_give_the_update_of_the_rows(
    model_folder: Callable[[str], Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_folder("qwen2_5_vl")
    alone = update(model, rows, tmp_path / "alone", per_device_train_batch_size=9)
    packed = {**PACKED, "gradient_accumulation_steps": 20}
    assert update(model, rows, tmp_path / "one", per_device_train_batch_size=1, **packed) == pytest.approx(
        alone, rel=1e-5
    )
    assert update(model, rows, tmp_path / "two", per_device_train_batch_size=2, **packed) == pytest.approx(
        alone, rel=1e-5
    )
    # The control: a mask that lets rows see those in front of them.
    leak = "vlm_lora.batching.packing.inputs.visible"
    monkeypatch.setattr(leak, lambda rows, **kinds: visible(rows.clamp(max=1), **kinds))
    leaking = update(model, rows, tmp_path / "leaking", per_device_train_batch_size=1, **packed)
    assert leaking[0] != pytest.approx(alone[0], rel=1e-3)
    assert leaking[1] != pytest.approx(alone[1], rel=1e-3)


@pytest.mark.parametrize("name", SHAPES if IS_5 else ("gemma3",))
def test_packs_on_two_processes_give_the_update_of_the_rows(
    name: str, model_folder: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    model = model_folder(name)
    alone = update(model, rows, tmp_path / "alone", per_device_train_batch_size=9)
    flags = {
        **WHOLE_EPOCH,
        **PACKED,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 20,
        "ddp_backend": "gloo",
    }
    run_processes([*TORCHRUN, *script_flags(model, rows, tmp_path / "two", **flags)])
    two = json.loads((tmp_path / "two" / "all_results.json").read_text(encoding="utf-8"))
    assert (two["train_loss"], logged(tmp_path / "two", "grad_norm")[0]) == pytest.approx(alone, rel=1e-5)
    other = update(model, rows, tmp_path / "other", per_device_train_batch_size=8)
    assert other[1] != pytest.approx(alone[1], rel=1e-3), "eight rows are another update"


def test_a_run_resumed_inside_its_second_epoch_equals_the_whole_one(
    model_folder: Callable[[str], Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a worker that reads packs ahead; and what the run says of its packs."""
    model = model_folder("gemma3")
    flags = {
        **PACKED,
        "do_train": True,
        "do_eval": True,
        "validation_name": rows / "train.jsonl",
        "static_shapes": False,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-2,
        "lora_dropout": 0.1,
        "save_strategy": "steps",
        "save_steps": 1,
        "log_level": "info",
    }
    results = run(model, rows, tmp_path / "whole", **flags)
    assert (results["train_samples"], results["eval_samples"]) == (9, 9)
    said = capsys.readouterr().err
    steps = len(logged(tmp_path / "whole", "loss"))
    packs = steps // 2
    assert steps % 2 == 0
    assert f"Packing: 9 rows in {packs} packs of at most 300 tokens in every epoch" in said
    assert f"counts packs: {9 / packs:.1f} rows an update (from " in said
    later = {**flags, "log_level": "error", "resume_from_checkpoint": tmp_path / "whole" / f"checkpoint-{packs + 1}"}
    run(model, rows, tmp_path / "resumed", **later, dataloader_num_workers=1)
    assert logged(tmp_path / "resumed", "loss") == logged(tmp_path / "whole", "loss")
    weights = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    changed = {**later, "data_seed": 7, "allow_changed": "data_seed"}
    run(model, rows, tmp_path / "other", **changed)
    assert logged(tmp_path / "other", "loss") != logged(tmp_path / "whole", "loss"), "other packs, other losses"


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("gemma3", {"packing": True, "pack_length": 30}, "have more tokens, the longest "),
        ("gemma3", {"pack_length": 300}, "--pack_length 300 is for --packing true: add it"),
        ("qwen2_5_vl", {"packing": True, "static_shapes": True}, "images of qwen2_5_vl have several. Type --static_sh"),
        ("gemma3", {"packing": True, "streaming": True}, "does not go with --streaming true"),
        (
            "gemma3",
            {**PACKED, **NO_FULL_STEP},
            ", a step needs 60 (--per_device_train_batch_size 60, 1 process), so none would be made. Type --per_dev",
        ),
        (
            "gemma3",
            NO_FULL_STEP,
            "true: 9 rows, a step needs 60 (--per_device_train_batch_size 60, 1 process), so none",
        ),
        ("mllama", {"packing": True}, "--packing true does not go with mllama: its cross attention"),
    ],
)
def test_what_does_not_go_with_packing_is_refused(
    name: str,
    flags: dict[str, object],
    message: str,
    model_folder: Callable[[str], Path],
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlm_lora.model.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    words = script_flags(model_folder(name), rows, tmp_path / "out", **{**WHOLE_EPOCH, **flags})
    assert run_script(words) == 1
    assert message in capsys.readouterr().err
