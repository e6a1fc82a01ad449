"""How LoRA begins: the base stays bit for bit, the adapter is the whole result, and other starts are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import run, script_flags
from support.tiny.batches import build_batch, load_plainly, next_token_loss
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.model.adapters.targets import base_name
from vlm_lora.model.families import family_of
from vlm_lora.model.tuning import apply_tuning

WITH_WEIGHTS = ("pissa", "pissa_niter_4", "olora")
FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lora_rank": 4,
    "weight_decay": 0.1,
}


def tuned_with(folder: Path, **settings: Any) -> Any:
    torch.manual_seed(3)
    _, model = load_plainly(folder)
    return apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=4, **settings))


@pytest.mark.parametrize("start", ["default", "gaussian", "orthogonal", *WITH_WEIGHTS])
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
    assert bool(b.any()) is (start not in ("default", "gaussian"))
    # The control: another start draws other numbers.
    other = tuned_with(folder, lora_init="gaussian" if start != "gaussian" else "default")
    assert not any(
        torch.equal(mine, theirs)
        for (name, mine), (_, theirs) in zip(tuned.named_parameters(), other.named_parameters(), strict=True)
        if "lora_A" in name
    )


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", "pissa", "olora"])
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
    if start in WITH_WEIGHTS:
        halves_stay(whole, half)
        said = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        assert (said["r"], said["lora_alpha"], said["init_lora_weights"]) == (8, 64, True)
    scored = run(out, data, tmp_path / "scored", do_eval=True)
    assert scored["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-6)
    plain = PeftModel.from_pretrained(load_plainly(folder)[1], str(out))
    loaded = {name.replace(".default", ""): p for name, p in plain.named_parameters() if "lora_" in name}
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(whole[name], p) for name, p in loaded.items())


def halves_stay(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    """The second half is as it began, also under weight decay; the first half has moved."""
    for name, matrix in after.items():
        (moved, stays), (old, begun) = (
            tensor.chunk(2, dim=0 if "lora_A" in name else 1) for tensor in (matrix, before[name])
        )
        assert torch.equal(stays, begun)
        assert not torch.equal(moved, old)


@pytest.mark.parametrize(("start", "rslora"), [("pissa", False), ("pissa", True), ("olora", False)])
def test_it_trains_as_the_published_form(start: str, rslora: bool, model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("llava")
    processor, base = load_plainly(folder)
    batch = build_batch(processor)
    ours = tuned_with(folder, lora_init=start, lora_alpha=4, use_rslora=rslora)
    ours_too = tuned_with(folder, lora_init="default", lora_alpha=4, use_rslora=rslora)  # the control
    names = [base_name(name) for name, layer in ours.named_modules() if hasattr(layer, "lora_A")]
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=names, init_lora_weights=start, use_rslora=rslora)
    published = get_peft_model(base, settings)
    results = []
    for tuned in (ours, published, ours_too):
        optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
        tuned.eval()
        for _ in range(3):
            next_token_loss(tuned, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            results.append(tuned(**batch).logits)
    # Rounding grows from step to step, with the scale: it was 1.2e-2 with olora and rslora, which is not tried here.
    torch.testing.assert_close(results[0], results[1], atol=6e-3, rtol=1e-3)
    assert not torch.allclose(results[2], results[1], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lora_init": "corda"}, "--lora_init corda: it begins by changing the base's weights"),
        ({"lora_init": "pissa_niter_0"}, "--lora_init pissa_niter_0: allowed are default, gaussian, orthogonal, pissa"),
        ({"lora_init": "pissa", "use_dora": True}, "--lora_init pissa with --use_dora true"),
        ({"lora_init": "olora", "lora_rank": 64}, "--lora_init olora with --lora_rank 64: model.language_model"),
        ({"lora_init": "eva"}, "--lora_init eva: it needs a pass over the data before training"),
        ({"lora_init": "loftq"}, "--lora_init loftq: it makes quantized weights of its own"),
        ({"lora_init": "xavier"}, "--lora_init xavier: allowed are default, gaussian, orthogonal, pissa, olora."),
        ({"lora_init": "orthogonal", "lora_rank": 3}, "--lora_init orthogonal needs an even rank"),
        ({"lora_init": "gaussian", "peft_method": "none"}, "are for --peft_method lora"),
        ({"init_lora_weights": "lora_ga"}, "it begins by changing the base's weights"),
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


@pytest.mark.parametrize("start", ["orthogonal", "pissa"])
def test_linear_layers_alone_begin_so(start: str, model_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=rf"--lora_init {start} with LoRA on .*patch_embedding"):
        tuned_with(model_folder("llava"), lora_init=start, lora_targets=".*(q_proj|patch_embedding)")
