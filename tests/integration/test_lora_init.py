"""How LoRA begins: the base stays bit for bit, the adapter is the whole result, and other starts are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.families import family_of
from vlm_lora.model.tuning import apply_tuning

FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_rank": 4,
}


def tuned_with(folder: Path, **settings: Any) -> Any:
    torch.manual_seed(3)
    _, model = load_plainly(folder)
    return apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=4, **settings))


@pytest.mark.parametrize("start", ["default", "gaussian", "orthogonal"])
def test_the_base_stays_and_the_first_output_is_its(start: str, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llava")
    processor, base = load_plainly(folder)
    tuned = tuned_with(folder, lora_init=start)
    before = dict(base.named_parameters())
    kept = {name.removeprefix("base_model.model."): p for name, p in tuned.named_parameters() if "lora_" not in name}
    assert len(kept) == len(before)
    assert all(torch.equal(p, before[name.replace(".base_layer", "")]) for name, p in kept.items())
    batch = build_batch(processor)
    with torch.no_grad():
        torch.testing.assert_close(tuned.eval()(**batch).logits, base.eval()(**batch).logits, atol=1e-4, rtol=1e-4)
    b = next(p for name, p in tuned.named_parameters() if "lora_B" in name)
    assert bool(b.any()) is (start == "orthogonal")
    # The control: another start draws other numbers.
    other = tuned_with(folder, lora_init="gaussian" if start != "gaussian" else "default")
    assert not any(
        torch.equal(mine, theirs)
        for (name, mine), (_, theirs) in zip(tuned.named_parameters(), other.named_parameters(), strict=True)
        if "lora_A" in name
    )


@pytest.mark.parametrize("start", ["gaussian", "orthogonal"])
def test_it_is_resumed_bitwise_and_reloads_by_plain_peft(
    start: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=6, validation=2)
    folder, out = model_folder("llava"), tmp_path / "out"
    results = run(folder, data, out, **FLAGS, lora_init=start, do_eval=True)
    run(folder, data, tmp_path / "again", **FLAGS, lora_init=start, resume_from_checkpoint=out / "checkpoint-2")
    whole, again, half = (
        load_file(place / "adapter_model.safetensors") for place in (out, tmp_path / "again", out / "checkpoint-2")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not any(torch.equal(whole[name], half[name]) for name in whole if "lora_B" in name)
    scored = run(out, data, tmp_path / "scored", do_eval=True)
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    plain = PeftModel.from_pretrained(load_plainly(folder)[1], str(out))
    loaded = {name.replace(".default", ""): p for name, p in plain.named_parameters() if "lora_" in name}
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(whole[name], p) for name, p in loaded.items())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lora_init": "pissa"}, "--lora_init pissa: it begins by changing the base's weights"),
        ({"lora_init": "pissa_niter_16"}, "--lora_init pissa_niter_16: it begins by changing the base's weights"),
        ({"lora_init": "olora"}, "--lora_init olora: it begins by changing the base's weights"),
        ({"lora_init": "eva"}, "--lora_init eva: it needs a pass over the data before training"),
        ({"lora_init": "loftq"}, "--lora_init loftq: it makes quantized weights of its own"),
        ({"lora_init": "xavier"}, "--lora_init xavier: allowed are default, gaussian, orthogonal."),
        ({"lora_init": "orthogonal", "lora_rank": 3}, "--lora_init orthogonal needs an even rank"),
        ({"lora_init": "gaussian", "peft_method": "none"}, "are for --peft_method lora"),
        ({"init_lora_weights": "olora"}, "it begins by changing the base's weights"),
    ],
)
def test_other_starts_are_refused_by_name(
    flags: dict[str, Any],
    said: str,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_uneven_rows(tmp_path / "data", rows=6, validation=2)
    given = {**FLAGS, **flags}
    assert run_script(script_flags(model_folder("llava"), data, tmp_path / "out", **given)) == 1
    assert said in capsys.readouterr().err


def test_orthogonal_is_for_linear_layers_alone(model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"--lora_init orthogonal with LoRA on .*patch_embedding"):
        tuned_with(model_folder("llava"), lora_init="orthogonal", lora_targets=".*(q_proj|patch_embedding)")
