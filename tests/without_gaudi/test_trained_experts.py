"""A mixture of experts by the command: trained, resumed, evaluated and reloaded with LoRA on its experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.tiny.folders import save_processor, waken
from vlm_lora.cli.main import main, run_script

FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_targets": "language,experts",
}


@pytest.fixture(scope="module")
def mixture(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL-MoE with six experts in each layer, none of whose matrices is square."""
    dense = model_folder("qwen3_vl")
    folder = tmp_path_factory.mktemp("mixture") / "model"
    settings = AutoConfig.from_pretrained(dense).to_dict()
    experts = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    own = ("model_type", "architectures", "dtype")
    text, vision = (
        {k: v for k, v in settings[part].items() if k not in own} for part in ("text_config", "vision_config")
    )
    ids = {key: value for key, value in settings.items() if key.endswith("_token_id")}
    config = transformers.Qwen3VLMoeConfig(text_config={**text, **experts}, vision_config=vision, **ids)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        waken(model)
    model.generation_config = transformers.GenerationConfig.from_pretrained(dense)
    model.save_pretrained(folder)
    save_processor(AutoProcessor.from_pretrained(dense), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)


@pytest.fixture(scope="module")
def trained(mixture: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder, and its results."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    return folder, run(mixture, data, folder, **FLAGS, do_eval=True)


def test_the_adapter_holds_every_expert_and_learns(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert len(settings["target_parameters"]) == 4
    weights = load_file(folder / "adapter_model.safetensors")
    matrices = {name: tensor for name, tensor in weights.items() if ".experts." in name and "lora_B" in name}
    assert len(matrices) == 4
    for tensor in matrices.values():
        assert all(tensor.reshape(tensor.shape[0], -1, 6)[:, :, number].any() for number in range(6))


def test_a_resumed_run_ends_with_the_same_bytes(
    mixture: Path, data: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run(mixture, data, tmp_path / "out", **FLAGS, resume_from_checkpoint=trained[0] / "checkpoint-2")
    again, whole = (load_file(place / "adapter_model.safetensors") for place in (tmp_path / "out", trained[0]))
    assert again.keys() == whole.keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    before = load_file(trained[0] / "checkpoint-2" / "adapter_model.safetensors")
    assert not all(torch.equal(before[name], whole[name]) for name in whole)  # the control


def test_evaluation_of_the_folder_and_plain_peft_give_the_same(
    mixture: Path, data: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, results = trained
    again = run(folder, data, tmp_path / "out", do_eval=True)
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    ids = torch.tensor([[5, 9, 14, 20]])
    base = AutoModelForImageTextToText.from_pretrained(mixture).eval()
    tuned = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        plain = tuned(input_ids=ids).logits
        tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()(input_ids=ids).logits
        other = AutoModelForImageTextToText.from_pretrained(mixture).eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, plain, atol=1e-5, rtol=1e-5)
    assert (other - plain).abs().max() > 1e-3  # the control


def test_the_merged_folder_says_what_the_adapter_says(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = trained
    words = ["--use_cpu", "true", "--max_new_tokens", "6", "--rows", "2"]
    assert main(["merge", str(folder), "--output_dir", str(tmp_path / "merged"), *words]) == 0
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text(encoding="utf-8"))
    assert report["proof"]["equal_answers"] == 2
    assert report["layers_computed_twice"] == len(report["layers"])
    assert sum(name.endswith((".experts.gate_up_proj", ".experts.down_proj")) for name in report["layers"]) == 4


@pytest.mark.parametrize(
    ("flag", "cure"), [({"lora_dropout": 0.05}, "--lora_dropout 0"), ({"use_dora": True}, "--use_dora false")]
)
def test_what_experts_have_not_ends_the_run_before_weights_are_read(
    flag: dict[str, Any],
    cure: str,
    mixture: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vlm_lora.model.loading.load_model", lambda *args, **kwargs: pytest.fail("weights were read"))
    assert run_script(script_flags(mixture, data, tmp_path / "out", **{**FLAGS, **flag})) == 1
    said = capsys.readouterr().err
    assert (
        f"PEFT has none there. Type {cure}, or leave the experts out, for example by --lora_targets language." in said
    )
