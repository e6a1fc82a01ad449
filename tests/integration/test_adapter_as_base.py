"""An adapter as `--model_name_or_path` of a training goes on as it is; flags that say otherwise are refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import capture_trainer, run, script_flags
from support.tiny.batches import load_plainly
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.continued import refuse_partitioned

FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
}
OWN: dict[str, Any] = {"lora_rank": 3, "lora_alpha": 12, "use_rslora": True, "lora_targets": "language,projector"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A folder with `data` and the run `adapter`."""
    root = tmp_path_factory.mktemp("first")
    write_uneven_rows(root / "data", rows=6, validation=2)
    run(model_folder("llava"), root / "data", root / "adapter", **{**FLAGS, **OWN, "max_steps": 2})
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_it_goes_on_as_it_is(
    first: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter, data, out = first / "adapter", first / "data", tmp_path / "out"
    trainers = capture_trainer(monkeypatch)
    results = run(adapter, data, out, **FLAGS, do_eval=True, log_level="info")
    said = capsys.readouterr().err
    assert f"LoRA goes on from the adapter {adapter} as it is (rank 3, alpha 12, dropout 0, " in said
    assert f"vlm-lora merge {adapter} --output_dir {adapter}-merged" in said
    trained = {name for name, p in trainers[0].model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    before, after, half = weights(adapter), weights(out), weights(out / "checkpoint-2")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    settings = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (3, 12, True)
    assert settings["base_model_name_or_path"] == str(model_folder("llava"))
    # The first step's loss is that of the adapter, not of the base.
    none = {"max_steps": 1, "learning_rate": 1e-30, "save_strategy": "no"}
    run(adapter, data, tmp_path / "still", **{**FLAGS, **none})
    still = weights(tmp_path / "still")
    assert all(torch.allclose(still[name], before[name], atol=1e-6) for name in before)
    run(adapter, data, tmp_path / "again", **FLAGS, resume_from_checkpoint=out / "checkpoint-2")
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[name], after[name]) for name in after)
    assert not any(torch.equal(half[name], after[name]) for name in after)
    scored = run(out, data, tmp_path / "scored", do_eval=True)
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    plain = PeftModel.from_pretrained(load_plainly(model_folder("llava"))[1], str(out))
    loaded = {name.replace(".default", ""): p for name, p in plain.named_parameters() if "lora_" in name}
    assert all(torch.equal(after[name], p) for name, p in loaded.items())
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f'from_pretrained("{model_folder("llava")}")' in card


def test_flags_that_say_what_it_is_pass(first: Path, tmp_path: Path) -> None:
    targets = json.loads((first / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    named = targets if isinstance(targets, str) else ",".join(targets)
    flags = {**FLAGS, **OWN, "lora_targets": named, "max_steps": 1, "save_strategy": "no"}
    run(first / "adapter", first / "data", tmp_path / "out", **flags)


def test_it_is_planned(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def adapter_bytes(*words: str) -> int:
        capsys.readouterr()
        assert main(["plan", *words, "--max_length", "256", "--device", "H200", "--json"]) == 0
        found: int = json.loads(capsys.readouterr().out)["devices"][0]["items"]["adapter"]
        return found

    base = json.loads((first / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))[
        "base_model_name_or_path"
    ]
    asked = [word for name, value in OWN.items() for word in (f"--{name}", str(value))]
    own = adapter_bytes("--model_name_or_path", str(first / "adapter"))
    assert own == adapter_bytes("--model_name_or_path", base, *asked)
    assert own != adapter_bytes("--model_name_or_path", base)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"lora_rank": 8},
            "--lora_rank 8: {adapter} is an adapter with 3, and is trained on as it is. Leave --lora_rank",
        ),
        ({"lora_alpha": 8}, "--lora_alpha 8: {adapter} is an adapter with 12"),
        ({"use_rslora": False}, "--use_rslora false: {adapter} is an adapter with true"),
        ({"lora_targets": "vision"}, "--lora_targets vision: {adapter} is an adapter with"),
        ({"lora_init": "pissa"}, "--lora_init pissa: {adapter} is an adapter, which has begun already"),
        ({"train_fully": "projector"}, "--train_fully projector: {adapter} is an adapter, which has begun already"),
        ({"peft_method": "none"}, "--peft_method none: {adapter} is an adapter, whose base's weights stay"),
    ],
)
def test_what_contradicts_it_is_refused(
    flags: dict[str, Any], said: str, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = first / "adapter"
    assert run_script(script_flags(adapter, first / "data", tmp_path / "out", **{**FLAGS, **flags})) == 1
    printed = capsys.readouterr().err
    assert said.format(adapter=adapter) in printed
    assert f"vlm-lora merge {adapter} --output_dir" in printed
    assert printed.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_shared_out_weights_are_refused(first: Path, model_folder: Callable[[str], Path]) -> None:
    from_adapter, from_base = (
        RunConfig(model=ModelConfig(model_name_or_path=str(place)))
        for place in (first / "adapter", model_folder("llava"))
    )
    with pytest.raises(ConfigError, match=r"--model_name_or_path .*adapter with ZeRO-3: .*Type --deepspeed zero2"):
        refuse_partitioned(from_adapter, "ZeRO-3")
    refuse_partitioned(from_adapter, "")
    refuse_partitioned(from_base, "ZeRO-3")


def test_adapters_that_were_not_tried_are_refused(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(first / "adapter", adapter)
    (adapter / "MANIFEST.json").unlink(missing_ok=True)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "bias": "all"}), encoding="utf-8")
    assert run_script(script_flags(adapter, first / "data", tmp_path / "out", **FLAGS)) == 1
    assert "training on from an adapter with bias all is not offered" in capsys.readouterr().err
