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
from transformers.models.auto.configuration_auto import model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from support.rows import write_uneven_rows
from support.runs import TORCHRUN, capture_trainer, run, run_processes, script_flags
from support.stacks import NEW_ROAD, on_hpu, run_words
from support.tiny.folders import save_processor, waken
from vlm_lora.backend import Precision
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.run_config import TuningConfig
from vlm_lora.memory.trace import Step, trace_step
from vlm_lora.model.adapters.experts import BALANCED
from vlm_lora.model.families import family_of

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


def test_two_processes_train_what_one_trains(mixture: Path, data: Path, tmp_path: Path) -> None:
    """Each sends its own row's tokens to other experts: what an expert learns is the sum over both."""
    flags = {**FLAGS, "optim": "sgd", "bf16": False, "train_sampling_strategy": "random", "save_strategy": "no"}
    run(mixture, data, tmp_path / "one", **flags, per_device_train_batch_size=2)
    words = script_flags(mixture, data, tmp_path / "two", **flags, per_device_train_batch_size=1)
    run_processes([*TORCHRUN, *words])
    run(mixture, data, tmp_path / "half", **flags, per_device_train_batch_size=1)
    one, two, half = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two", "half"))
    learnt = [name for name in one if "lora_B" in name]
    assert sum(".experts." in name for name in learnt) == 4
    for name in learnt:
        scale = float(one[name].abs().max())
        assert scale > 0
        assert float((two[name] - one[name]).abs().max()) < 1e-4 * scale, name
        assert float((half[name] - one[name]).abs().max()) > 1e-2 * scale, name  # the control: half of each batch


def test_on_gaudis_newer_road_experts_learn_what_they_learn_on_the_cpu(
    mixture: Path, data: Path, tmp_path: Path
) -> None:
    flags = {**FLAGS, "optim": "sgd", "bf16": False, "static_shapes": True, "save_strategy": "no", "max_steps": 2}
    run(mixture, data, tmp_path / "cpu", **flags)
    words = ["run_lora_vlm.py", *on_hpu(mixture, data, tmp_path / "hpu", **{**flags, "log_level": "warning"})]
    done = run_words(words, python=NEW_ROAD.python, variables=NEW_ROAD.variables)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Experts: one after the other (eager)" in done.stderr
    cpu, hpu = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("cpu", "hpu"))
    learnt = [name for name in cpu if ".experts." in name and "lora_B" in name]
    assert len(learnt) == 4
    for name in learnt:
        scale = float(cpu[name].abs().max())  # B begins as zero
        assert scale > 0
        assert float((hpu[name] - cpu[name]).abs().max()) < 1e-4 * scale, name


def test_in_4_bits_experts_stay_whole_and_learn(
    mixture: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = capture_trainer(monkeypatch)
    run(mixture, data, tmp_path / "out", **{**FLAGS, "save_strategy": "no"}, load_in_4bit=True, log_level="info")
    parameters = dict(kept[0].model.named_parameters())
    experts = {name: p for name, p in parameters.items() if ".experts." in name and "lora_" not in name}
    assert len(experts) == 4
    assert {p.dtype for p in experts.values()} <= {torch.float32, torch.bfloat16}
    assert all(p.ndim == 3 for p in experts.values())
    attention = [p for name, p in parameters.items() if "language_model" in name and "q_proj.base_layer" in name]
    assert attention  # the control: linear layers are held in 4 bits
    assert {p.dtype for p in attention} == {torch.uint8}
    assert "Quantization: 4 parameters that hold all experts of a layer stay whole, " in capsys.readouterr().err
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if ".experts." in name and "lora_B" in name)


def test_the_plan_in_4_bits_counts_experts_whole(mixture: Path) -> None:
    config = AutoConfig.from_pretrained(mixture)
    ids = torch.tensor([[5, 9, 14, 20]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    trace = trace_step(
        Step(
            tuning=TuningConfig(lora_targets="language,experts"),
            checkpointing=False,
            precision=Precision(weights="float32"),
            attention="eager",
            fused_attention=False,
        ),
        config=config,
        family=family_of(config),
        batch={**batch, "supervised_positions": torch.tensor([[0, 1, 2]])},
        trust_remote_code=False,
    )
    experts = [weight for weight in trace.weights if ".experts." in weight.name and not weight.adapter]
    assert len(experts) == 4
    assert not any(weight.quantizable for weight in experts)
    assert any(weight.quantizable for weight in trace.weights)


def test_an_even_load_is_asked_for_and_weighs_each_micro_batch_alike(
    mixture: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the model's own loss is added; two micro-batches of an update and two processes give the same update."""
    kept = capture_trainer(monkeypatch)
    flags = {
        **FLAGS,
        "optim": "sgd",
        "bf16": False,
        "train_sampling_strategy": "random",
        "save_strategy": "no",
        "max_steps": 1,
    }
    flags |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    without = run(mixture, data, tmp_path / "without", **flags)
    asked = {**flags, "router_aux_loss_coef": 0.5}
    results = run(mixture, data, tmp_path / "one", **asked)
    seen: list[torch.Tensor] = []
    base = AutoModelForImageTextToText.from_pretrained(mixture)
    for batch in kept[0].get_train_dataloader():
        inputs = {n: t for n, t in batch.items() if torch.is_tensor(t) and n not in ("labels", "supervised_positions")}
        with torch.no_grad():
            seen.append(base(**inputs, output_router_logits=True).aux_loss)
    assert len(seen) == 2
    added = 0.5 * float(sum(seen)) / 2
    assert added > 0.1
    assert results["train_loss"] - without["train_loss"] == pytest.approx(added, rel=1e-4)
    run_processes(
        [*TORCHRUN, *script_flags(mixture, data, tmp_path / "two", **{**asked, "gradient_accumulation_steps": 1})]
    )
    one, two, plain = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two", "without"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=1e-5)
    assert max(float((plain[name] - one[name]).abs().max()) for name in one) > 1e-5  # the control


def test_models_without_such_a_loss_are_refused(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = script_flags(model_folder("llava"), data, tmp_path / "out", do_train=True, router_aux_loss_coef=0.01)
    assert run_script(flags) == 1
    said = capsys.readouterr().err
    assert "--router_aux_loss_coef 0.01: models of type 'llava' make no loss for an even load of experts; " in said


def test_the_table_has_the_types_that_make_such_a_loss() -> None:
    folder = Path(transformers.__file__).parent / "models"
    names = {name: model_type_to_module_name(name) for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    files = {name: folder / module / f"modeling_{module}.py" for name, module in names.items()}
    read = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    assert len(read) > 40
    assert {name for name, code in read.items() if "aux_loss = load_balancing_loss_func(" in code} == BALANCED
