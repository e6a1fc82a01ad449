"""Parts trained with all their weights beside LoRA: saved with the adapter, reloaded by plain PEFT, resumed bitwise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from support.rows import write_uneven_rows
from support.runs import capture_trainer, run, script_flags
from support.tiny.batches import build_batch, load_plainly
from vlm_lora.backend import Precision
from vlm_lora.cli.main import run_script
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.errors import ConfigError
from vlm_lora.memory.trace import Step, trace_step
from vlm_lora.model.families import family_of
from vlm_lora.model.parts import Part, count_parameters, find_parts
from vlm_lora.model.tuning import apply_tuning

FLAGS: dict[str, Any] = {
    "do_train": True,
    "max_steps": 4,
    "learning_rate": 1e-2,
    "save_strategy": "steps",
    "save_steps": 2,
    "train_fully": "projector",
}


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize("part", ["projector", "vision", "embeddings"])
def test_exactly_that_part_trains_and_plain_peft_reloads_and_merges_it(
    name: str, part: Part, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    processor, model = load_plainly(model_folder(name))
    batch = build_batch(processor)
    parts = find_parts(model)
    sizes = count_parameters(model, parts)
    tuned = apply_tuning(model, family_of(model.config), TuningConfig(lora_rank=2, train_fully=(part,)))
    counts = count_parameters(tuned, parts)
    unread = sum(p.numel() for n, p in model.named_parameters() if parts.part_of(n) == part and parts.is_never_used(n))
    assert counts[part][1] == sizes[part][1]
    assert counts[part][0] + unread == sizes[part][1]
    assert [other for other in counts if counts[other][0] and other not in ("language", part)] == []
    tuned.train()
    tuned(**batch).logits.square().mean().backward()
    missed = [n for n, p in tuned.named_parameters() if p.requires_grad and p.grad is None]
    assert missed == []
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad.sign())
        ours = tuned.eval()(**batch).logits
        tuned.save_pretrained(tmp_path / "adapter")
        with warnings.catch_warnings():
            # transformers 4.55 calls a model tied whose text model is not.
            warnings.filterwarnings("ignore", message=".*tie")
            plain = PeftModel.from_pretrained(load_plainly(model_folder(name))[1], str(tmp_path / "adapter")).eval()
            torch.testing.assert_close(plain(**batch).logits, ours)
            plain.merge_and_unload().save_pretrained(tmp_path / "merged")
        processor.save_pretrained(tmp_path / "merged")
        merged = load_plainly(tmp_path / "merged")[1].eval()
        torch.testing.assert_close(merged(**batch).logits, ours, atol=1e-3, rtol=1e-3)
        untouched = load_plainly(model_folder(name))[1].eval()
        assert (untouched(**batch).logits - ours).abs().max() > 1e-2  # the control


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("rows") / "data", rows=6, validation=2)


def test_a_run_is_resumed_bitwise_and_its_folder_scores_the_same(
    data: Path, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    rates = {"projector_learning_rate": 3e-3}
    first = run(model_folder("llava"), data, tmp_path / "whole", **FLAGS, **rates, do_eval=True)
    optimizer = trainers[0].optimizer
    groups = {group["initial_lr"] for group in optimizer.param_groups}
    assert groups == {1e-2, 3e-3}
    run(
        model_folder("llava"),
        data,
        tmp_path / "again",
        **FLAGS,
        **rates,
        resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2",
    )
    whole, again, half = (
        load_file(tmp_path / place / "adapter_model.safetensors") for place in ("whole", "again", "whole/checkpoint-2")
    )
    assert any("multi_modal_projector" in name and "lora" not in name for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not any(torch.equal(whole[name], half[name]) for name in whole if "multi_modal_projector" in name)
    scored = run(tmp_path / "whole", data, tmp_path / "scored", do_eval=True)
    assert scored["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)


def test_the_same_layers_are_not_trained_twice(model_folder: Callable[[str], Path]) -> None:
    _, model = load_plainly(model_folder("llava"))
    tuning = TuningConfig(lora_targets="language,projector", train_fully=("projector",))
    with pytest.raises(ConfigError, match=r"--train_fully and --lora_targets language,projector both train .*linear"):
        apply_tuning(model, family_of(model.config), tuning)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"train_fully": "tower"}, "--train_fully tower: allowed are projector, vision, embeddings."),
        ({"peft_method": "none"}, "--use_rslora, --train_fully and --new_tokens are for --peft_method lora"),
        ({"head_learning_rate": 1e-3}, "--head_learning_rate: embeddings and head carry no LoRA."),
        ({"cache_vision_features": "on"}, "--cache_vision_features on: the projector trains"),
    ],
)
def test_what_contradicts_it_is_said_before_weights_are_read(
    flags: dict[str, Any],
    said: str,
    data: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(script_flags(model_folder("llava"), data, tmp_path / "out", **{**FLAGS, **flags})) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("part", ["projector", "embeddings"])
def test_what_trains_is_float32_on_a_base_in_bfloat16(part: str, model_folder: Callable[[str], Path]) -> None:
    """Also outside of autocast, as answers are generated, and with a head that is the embeddings' tensor."""
    processor, model = load_plainly(model_folder("gemma3"))
    batch = {key: v.bfloat16() if v.is_floating_point() else v for key, v in build_batch(processor).items()}
    tuning = TuningConfig(lora_rank=2, train_fully=(part,))
    tuned = apply_tuning(model.to(torch.bfloat16), family_of(model.config), tuning)
    assert {p.dtype for p in tuned.parameters() if p.requires_grad} == {torch.float32}
    logits = tuned(**batch).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().mean().backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)


def test_the_memory_plan_counts_the_copy(model_folder: Callable[[str], Path]) -> None:
    processor, model = load_plainly(model_folder("llava"))
    batch = build_batch(processor)
    batch["labels"] = batch["input_ids"]
    batch["supervised_positions"] = torch.arange(4)[None].expand(len(batch["input_ids"]), -1)

    def weights(*fully: str) -> tuple[int, int]:
        step = Step(
            tuning=TuningConfig(lora_rank=2, train_fully=fully),
            checkpointing=False,
            precision=Precision(weights="float32"),
            attention="eager",
            fused_attention=False,
        )
        family = family_of(model.config)
        trace = trace_step(step, config=model.config, family=family, batch=batch, trust_remote_code=False)
        return sum(w.bytes for w in trace.weights), sum(w.bytes for w in trace.weights if w.trained)

    projector = sum(p.nbytes for n, p in model.named_parameters() if find_parts(model).part_of(n) == "projector")
    (before, trained_before), (after, trained_after) = weights(), weights("projector")
    assert after - before == projector
    assert trained_after - trained_before == projector
