"""Bases whose weights are stored in few bits: trained, saved, reloaded, gone on from; fp8 exactly as it is stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from support.rows import write_uneven_rows
from support.runs import capture_trainer, run, script_flags
from support.tiny.batches import build_batch
from vlm_lora.cli.main import main, run_script

TRAIN: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "lora_rank": 4,
    "save_strategy": "steps",
    "save_steps": 2,
}
KEPT = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=4, validation=2)


@pytest.fixture(scope="module")
def stored(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of the tiny model in `4` or `8` bits by bitsandbytes, or in `fp8`."""
    root = tmp_path_factory.mktemp("stored")

    def folder(kind: str) -> Path:
        place = root / kind
        if not place.exists():
            shutil.copytree(model_folder("llava"), place)
            (in_fp8 if kind == "fp8" else in_few_bits)(place, kind)
        return place

    return folder


def in_few_bits(folder: Path, bits: str) -> None:
    settings = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=KEPT)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, quantization_config=settings, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)


def in_fp8(folder: Path, _: str) -> None:
    """Store the language model's projections in blocks of 8-bit floats, as published FP8 models have them."""
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        tensors[name] = weight
        if "language_model" in name and name.endswith("proj.weight"):
            scale = weight.abs().max().reshape(1, 1) / 448
            tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": KEPT,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(("kind", "layer"), [("4", "Linear4bit"), ("8", "Linear8bitLt"), ("fp8", "Linear")])
def test_it_trains_reloads_and_goes_on(
    kind: str,
    layer: str,
    stored: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = stored(kind), tmp_path / "out"
    trainers = capture_trainer(monkeypatch)
    results = run(base, data, out, **TRAIN, do_eval=True, log_level="info")
    said = capsys.readouterr().err
    words = {"4": "4 bits by bitsandbytes and stays", "8": "8 bits by bitsandbytes and stays", "fp8": "8 bits by fp8; "}
    assert f"the base is stored in {words[kind]}" in said
    assert ("14 linear layers are in few bits, 0 of them outside" in said) is (kind != "fp8")
    trained = trainers[0].model
    query = next(m for n, m in trained.named_modules() if n.endswith("language_model.layers.0.self_attn.q_proj"))
    assert type(query.base_layer).__name__ == layer
    run(base, data, tmp_path / "again", **TRAIN, resume_from_checkpoint=out / "checkpoint-2")
    whole, again, half = (
        load_file(place / "adapter_model.safetensors") for place in (out, tmp_path / "again", out / "checkpoint-2")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not any(torch.equal(whole[name], half[name]) for name in whole if "lora_B" in name)
    scored = run(out, data, tmp_path / "scored", do_eval=True)
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    # Plain transformers and PEFT give what the training had; without the adapter they do not.
    batch = build_batch(transformers.AutoProcessor.from_pretrained(base))
    plain = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32, device_map={"": "cpu"})
    without = logits(plain, batch)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, str(out)), batch), logits(trained, batch))
    assert not torch.allclose(without, logits(trained, batch), atol=1e-3)


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**batch).logits
    return found


def test_fp8_becomes_exactly_what_it_stands_for(
    stored: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = stored("fp8")
    trainers = capture_trainer(monkeypatch)
    run(base, data, tmp_path / "out", **{**TRAIN, "max_steps": 1, "save_strategy": "no"})
    files = load_file(base / "model.safetensors")
    scaled = {name.removesuffix("_scale_inv"): scale for name, scale in files.items() if name.endswith("_scale_inv")}
    loaded = {
        name.replace("base_model.model.model.language_model", "language_model.model").replace(".base_layer", ""): value
        for name, value in trainers[0].model.named_parameters()
    }
    assert len(scaled) == 14
    for name, scale in scaled.items():
        assert torch.equal(loaded[name], files[name].float() * scale)
        assert not torch.equal(loaded[name], files[name].float())
    # It is whole now, and can be merged into.
    assert main(["merge", str(tmp_path / "out"), "--output_dir", str(tmp_path / "merged"), "--use_cpu"]) == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config


def test_a_base_in_few_bits_is_measured_without_an_adapter_and_planned_smaller(
    stored: Callable[[str], Path],
    model_folder: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["eval", *script_flags(stored("8"), data, tmp_path / "eval")]) == 0

    def weights(folder: Path) -> int:
        capsys.readouterr()
        flags = ["--model_name_or_path", str(folder), "--max_length", "256", "--device", "H200", "--json"]
        assert main(["plan", *flags]) == 0
        [device] = json.loads(capsys.readouterr().out)["devices"]
        found: int = device["items"]["weights"]
        return found

    whole, eight, four, unpacked = (
        weights(f) for f in (model_folder("llava"), stored("8"), stored("4"), stored("fp8"))
    )
    assert whole == unpacked > eight > four


@pytest.mark.parametrize(
    ("kind", "flags", "said"),
    [
        ("8", {"peft_method": "none"}, "--peft_method none"),
        ("8", {"lora_init": "orthogonal"}, "--lora_init orthogonal"),
        ("4", {"load_in_4bit": True}, "--load_in_4bit: this base is stored quantized (4 bits by bitsandbytes)"),
        ("4", {"bf16_full_eval": True, "do_eval": True}, "--bf16_full_eval: the base is stored in 4 bits"),
    ],
)
def test_refusals_come_before_any_row_is_read(
    kind: str,
    flags: dict[str, Any],
    said: str,
    stored: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = stored(kind)
    assert run_script(script_flags(base, data, tmp_path / "out", **{**TRAIN, "log_level": "info", **flags})) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("error: ") == 1
    assert "Checked " not in printed
