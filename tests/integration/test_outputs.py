"""What a run leaves behind, and that each piece works again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from support.rows import write_uneven_rows
from support.runs import capture_trainer, logged, results_of, run, script_flags
from support.sealed import seal_again
from vlm_lora.cli.main import main, run_script
from vlm_lora.config.whole_files import write_json
from vlm_lora.training.checkpoints import valid_state
from vlm_lora.training.trainer import VlmTrainerMixin

FLAGS = {
    "do_train": True,
    "do_eval": True,
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_uneven_rows(tmp_path_factory.mktemp("outputs") / "data", rows=6, validation=3)


@pytest.fixture(scope="module")
def whole(model_folder: Callable[[str], Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of `FLAGS` left behind. Copy it before changing it."""
    output = tmp_path_factory.mktemp("outputs") / "whole"
    run(model_folder("gemma3"), data, output, **FLAGS)
    return output


def copied(whole: Path, place: Path) -> Path:
    return Path(shutil.copytree(whole, place))


def test_checkpoints_hold_adapter_and_processor(whole: Path) -> None:
    for step in (2, 4):
        checkpoint = whole / f"checkpoint-{step}"
        assert {
            "adapter_model.safetensors",
            "adapter_config.json",
            "tokenizer.json",
            "chat_template.jinja",
        } <= {path.name for path in checkpoint.iterdir()}
        AutoProcessor.from_pretrained(checkpoint)


def test_evaluation_at_the_start_is_that_of_the_base(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    flags = {"do_train": True, "do_eval": True, "max_steps": 3, "learning_rate": 1e-2}
    results = run(model_folder("gemma3"), data, tmp_path / "out", eval_on_start=True, **flags)
    base = run(model_folder("gemma3"), data, tmp_path / "base", do_eval=True)
    assert results["eval_start_perplexity"] == pytest.approx(base["eval_perplexity"], rel=1e-6)
    assert results["eval_perplexity"] != pytest.approx(base["eval_perplexity"], rel=1e-4)


def test_the_saved_configuration_repeats_the_run(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    flags = {"do_train": True, "max_steps": 3, "learning_rate": 3e-3, "lora_rank": 4}
    run(model_folder("gemma3"), data, first, **flags)
    again = ["--config", str(first / "run_config.yaml"), "--output_dir", str(second)]
    assert run_script(again) == 0
    assert logged(second, "loss") == logged(first, "loss")


def test_adapter_folder_evaluates_like_the_model_in_memory(whole: Path, data: Path, tmp_path: Path) -> None:
    reloaded = run(whole, data, tmp_path / "eval", do_eval=True)
    assert reloaded["eval_perplexity"] == pytest.approx(results_of(whole)["eval_perplexity"], rel=1e-5)


def test_full_weights_are_saved_and_reload(model_folder: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = {"peft_method": "none", "do_train": True, "do_eval": True, "max_steps": 2, "learning_rate": 1e-3}
    trained = run(model_folder("gemma3"), data, output, **flags)
    assert (output / "model.safetensors").exists()
    reloaded = run(output, data, tmp_path / "eval", do_eval=True)
    assert reloaded["eval_perplexity"] == pytest.approx(trained["eval_perplexity"], rel=1e-5)


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by one with each training step."""
    steps: list[int] = []
    step = VlmTrainerMixin.compute_loss

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(VlmTrainerMixin, "compute_loss", counted)
    return steps


def test_resume_goes_on_bitwise(
    model_folder: Callable[[str], Path], data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = copied(whole, tmp_path / "parts")
    name = "adapter_model.safetensors"
    shutil.rmtree(parts / "checkpoint-4")
    (parts / name).unlink()
    trained = count_steps(monkeypatch)
    run(model_folder("gemma3"), data, parts, **{**FLAGS, "do_eval": False}, resume_from_checkpoint="true")
    assert len(trained) == 2, "two of four steps were left"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()
    shutil.copy(parts / "checkpoint-4" / "optimizer.pt", parts / "checkpoint-2")
    seal_again(parts / "checkpoint-2")
    shutil.rmtree(parts / "checkpoint-4")
    run(model_folder("gemma3"), data, parts, **{**FLAGS, "do_eval": False}, resume_from_checkpoint="true")
    assert (parts / name).read_bytes() != (whole / name).read_bytes(), "with another optimizer's state it must differ"


def test_weights_alone_are_said_and_refused(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"do_train": True, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "log_level": "warning"}
    alone = {**flags, "save_only_model": True}
    run(model_folder("gemma3"), data, tmp_path / "out", **alone)
    assert "--save_only_model true: checkpoints hold weights alone" in capsys.readouterr().err
    again = {**alone, "max_steps": 2, "resume_from_checkpoint": "true"}
    assert run_script(script_flags(model_folder("gemma3"), data, tmp_path / "out", **again)) == 1
    assert "checkpoint-1: optimizer.pt (missing or empty), scheduler.pt (missing" in capsys.readouterr().err
    run(model_folder("gemma3"), data, tmp_path / "control", **flags)
    assert "--save_only_model" not in capsys.readouterr().err
    run(
        model_folder("gemma3"),
        data,
        tmp_path / "control",
        **{**flags, "max_steps": 2, "resume_from_checkpoint": "true"},
    )


def test_killed_while_saving(
    model_folder: Callable[[str], Path],
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trainer's state is the last file of a checkpoint, so that one without it is told from a whole one."""
    flags: dict[str, object] = {**FLAGS, "do_eval": False}
    killed = tmp_path / "killed"

    def cut_short(path: Path, values: Mapping[str, Any]) -> None:
        if "checkpoint-4" in str(path):
            raise KeyboardInterrupt
        write_json(path, values)

    with monkeypatch.context() as patch:
        patch.setattr(valid_state, "write_json", cut_short)
        assert run_script(script_flags(model_folder("gemma3"), data, killed, **flags)) == 130
    names = {path.name for path in (whole / "checkpoint-4").iterdir()}
    assert {path.name for path in (killed / "checkpoint-4").iterdir()} == names - {"trainer_state.json"}
    flags["log_level"] = "warning"
    run(model_folder("gemma3"), data, killed, **flags, resume_from_checkpoint="true")
    assert f"{killed / 'checkpoint-4'}: saving was interrupted; going on from" in capsys.readouterr().err
    name = "adapter_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_tensorboard_when_asked(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(events))
    run(model_folder("gemma3"), data, tmp_path / "out", do_train=True, max_steps=1, report_to="tensorboard")
    assert list(events.rglob("events.out.tfevents.*"))


def test_memory_is_reported(whole: Path) -> None:
    assert results_of(whole)["train_memory_peak_bytes"] > 10 * 2**20


def test_checkpointing_changes_nothing_but_memory(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = capture_trainer(monkeypatch)
    flags = {"do_train": True, "max_steps": 2, "learning_rate": 1e-2}
    plain = run(model_folder("gemma3"), data, tmp_path / "plain", **flags)
    saved = run(model_folder("gemma3"), data, tmp_path / "saved", **flags, gradient_checkpointing=True)
    assert saved["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-6)
    assert [trainer.model.is_gradient_checkpointing for trainer in trainers] == [False, True]


def test_ask_answers_as_plain_transformers_does(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    run(model_folder("gemma3"), data, output, do_train=True, max_steps=5, learning_rate=3e-2)
    capsys.readouterr()
    command = ["ask", "--model_name_or_path", str(output), "--prompt", "What is in this image?"]
    command += ["--max_new_tokens", "8", "--use_cpu"]
    answers = []
    for picture in ("train-0.png", "train-1.png"):
        assert main([*command, "--image", str(data / picture)]) == 0
        answers.append(capsys.readouterr().out.removesuffix("\n"))
    assert answers == plain_answers(model_folder("gemma3"), output, data)


def plain_answers(base: Path, adapter: Path, data: Path) -> list[str]:
    processor = AutoProcessor.from_pretrained(adapter, backend="torchvision")
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
    parts = [{"type": "image"}, {"type": "text", "text": "What is in this image?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False
    )
    answers = []
    for picture in ("train-0.png", "train-1.png"):
        image = Image.open(data / picture).convert("RGB")
        inputs = processor(text=[prompt], images=[[image]], return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answers.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_preview_shows_what_is_supervised(
    model_folder: Callable[[str], Path], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["preview", "--model_name_or_path", str(model_folder("gemma3")), "--dataset_name", str(data)]
    assert main([*command, "--rows", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    answers = [json.loads(line)["answer"] for line in (data / "train.jsonl").read_text().splitlines()]
    assert [row["supervised"][0]["text"] for row in rows] == [f"{answer}<end_of_turn>" for answer in answers[:2]]
    assert main([*command, "--rows", "1"]) == 0
    assert "What is in picture 0?" in capsys.readouterr().out


def test_a_dropped_last_batch_is_evaluated_all_the_same(
    model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    flags = {"do_eval": True, "per_device_eval_batch_size": 2}
    kept = run(model_folder("gemma3"), data, tmp_path / "kept", **flags)
    dropped = run(model_folder("gemma3"), data, tmp_path / "dropped", **flags, dataloader_drop_last=True)
    assert dropped["eval_supervised_tokens"] == kept["eval_supervised_tokens"]
    assert dropped["eval_perplexity"] == pytest.approx(kept["eval_perplexity"], rel=1e-6)


def test_overwriting_leaves_nothing_of_the_earlier_run(
    model_folder: Callable[[str], Path], data: Path, whole: Path, tmp_path: Path
) -> None:
    output = copied(whole, tmp_path / "out")
    flags = {"do_train": True, "save_strategy": "steps", "save_steps": 1}
    results = run(model_folder("gemma3"), data, output, **flags, max_steps=1, overwrite_output_dir=True)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-1"]
    assert "eval_perplexity" not in results


def test_evaluation_into_a_training_folder_keeps_its_configuration(data: Path, whole: Path, tmp_path: Path) -> None:
    output = copied(whole, tmp_path / "out")
    run(output, data, output, do_eval=True)
    assert (output / "run_config.yaml").read_bytes() == (whole / "run_config.yaml").read_bytes()
